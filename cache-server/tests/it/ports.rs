//! What 200 open port connectors cost: the built program, looked at from outside.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::free_port;

const PORTS: usize = 200;
/// How long the server may take to see its configuration change, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);
/// For how long its processor time is counted.
const WATCHED: Duration = Duration::from_secs(5);
const KIB: u64 = 1024;

/// Ends with the test, also with one that fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Memory in use that is no part of the program's file, in bytes: how much of that is there depends on what else the machine
    /// has read.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * KIB
    }

    /// Processor time used so far, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn ticks_while_watched(&self) -> u64 {
        let before = self.ticks();
        std::thread::sleep(WATCHED);
        self.ticks() - before
    }
}

fn write(file: &Path, ports: &[u16]) {
    let connectors: Vec<String> = ports.iter().map(|port| format!("{{port: {port}}}")).collect();
    let text = format!(
        "apiVersion: entrepot.dev/v1alpha1\nkind: RegistryMirror\nmetadata: {{name: hub}}\nspec:\n  upstream: {{url: 'http://127.0.0.1:1'}}\n  connectors: [{}]\n",
        connectors.join(", ")
    );
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

fn until_it_listens(port: u16) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "port {port} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_hundred_open_ports_cost_less_than_two_mebibytes_and_no_processor_time() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let (main, ports) = (free_port(), (0..PORTS).map(|_| free_port()).collect::<Vec<_>>());
    write(&config, &[]);
    let command = Command::new(env!("CARGO_BIN_EXE_cache-server"))
        .arg("--config")
        .arg(&config)
        .arg("--data")
        .arg(folder.path().join("data"))
        .args(["--listen", &format!("127.0.0.1:{main}")])
        .env("ENTREPOT_LOG", "error")
        .stdin(Stdio::null())
        .spawn();
    let server = Process(command.unwrap());
    until_it_listens(main);
    // A first reload, so that what reloading itself costs is not counted as the ports'.
    write(&config, &ports[..1]);
    until_it_listens(ports[0]);
    let without = server.ticks_while_watched();
    let before = server.memory();
    let began = Instant::now();
    write(&config, &ports);
    until_it_listens(ports[PORTS - 1]);
    let opened = began.elapsed();
    let with = server.ticks_while_watched();
    let cost = server.memory().saturating_sub(before);
    println!(
        "{PORTS} ports: open after {opened:?}; {} KiB more than without ({} KiB); {} ms of processor time in {WATCHED:?}, without {} ms",
        cost / KIB,
        before / KIB,
        with * 10,
        without * 10,
    );
    for port in &ports {
        until_it_listens(*port);
    }
    assert!(cost < 2048 * KIB, "{cost} bytes");
    assert!(with <= without + 5, "{with} ticks, without ports {without}");
}
