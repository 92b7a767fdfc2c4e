//! Control groups of a run's pods. They outlive namespaces, so whoever ends a run removes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Where the hierarchies are: version 1 has one folder for each, version 2 is one itself.
const MOUNTS: &str = "/sys/fs/cgroup";
/// See [`inherit`].
const INHERITED: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// A group is busy until the last of its killed processes is gone.
const REMOVE_LIMIT: Duration = Duration::from_secs(30);

/// The group, from the root of each hierarchy, of the run with this process.
#[must_use]
pub fn of_run(runner: u32) -> PathBuf {
    Path::new("/").join(format!("entrepot-{runner}"))
}

/// Makes a group in every hierarchy.
pub fn create(group: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy;
        for part in group.iter().skip(1) {
            let parent = path.clone();
            path.push(part);
            delegate(&parent)?;
            fs::create_dir_all(&path).with_context(|| format!("cannot make the control group {}", path.display()))?;
            inherit(&parent, &path)?;
        }
    }
    Ok(())
}

/// Removes a group with all below it; its processes must have ended or be ending.
pub fn remove(group: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        remove_tree(&below(&hierarchy, group))?;
    }
    Ok(())
}

/// The processes of the group whose last part is `name`, somewhere below `group`.
pub fn processes(group: &Path, name: &str) -> Result<Vec<i32>> {
    for hierarchy in hierarchies()? {
        if let Some(found) = find(&below(&hierarchy, group), name)? {
            let text = fs::read_to_string(found.join("cgroup.procs")).context("cannot read a control group")?;
            return Ok(text.lines().filter_map(|line| line.parse().ok()).collect());
        }
    }
    Ok(Vec::new())
}

/// The same command, begun as a member of the group in the hierarchy that counts processor time.
pub fn counted(group: &Path, command: &Command) -> Result<Command> {
    let members = below(&counting()?, group).join("cgroup.procs");
    let mut entering = Command::new("sh");
    entering.arg("-c").arg("echo $$ > \"$0\" && exec \"$@\"").arg(members).arg(command.get_program());
    entering.args(command.get_args());
    for (variable, value) in command.get_envs() {
        match value {
            Some(value) => entering.env(variable, value),
            None => entering.env_remove(variable),
        };
    }
    Ok(entering)
}

/// The processor time that a group's processes have used since it was made, in seconds.
pub fn processor_seconds(group: &Path) -> Result<f64> {
    let folder = below(&counting()?, group);
    let read = |file: &str| fs::read_to_string(folder.join(file));
    // Version 1 counts nanoseconds, version 2 microseconds.
    let counted = match read("cpuacct.usage") {
        Ok(nanoseconds) => nanoseconds.trim().parse::<u64>().ok().map(Duration::from_nanos),
        Err(_) => read("cpu.stat").ok().and_then(|text| {
            let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            microseconds.parse::<u64>().ok().map(Duration::from_micros)
        }),
    };
    counted.map(|time| time.as_secs_f64()).with_context(|| format!("{} counts no processor time", folder.display()))
}

/// The processes of a group whose processor time is counted.
pub fn counted_processes(group: &Path) -> Result<Vec<i32>> {
    let text =
        fs::read_to_string(below(&counting()?, group).join("cgroup.procs")).context("cannot read a control group")?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The hierarchy that counts processor time.
fn counting() -> Result<PathBuf> {
    let all = hierarchies()?;
    let counts =
        |hierarchy: &&PathBuf| ["cpuacct.usage", "cgroup.controllers"].iter().any(|file| hierarchy.join(file).exists());
    all.iter().find(counts).cloned().context("this machine has no control groups that count processor time")
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for child in children(folder)? {
        if child.ends_with(name) {
            return Ok(Some(child));
        }
        if let Some(found) = find(&child, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(MOUNTS);
    if root.join("cgroup.procs").exists() {
        return Ok(vec![root.to_owned()]);
    }
    // The machine's `cpu` may be a link to `cpu,cpuacct`.
    Ok(children(root)?.into_iter().filter(|path| path.join("cgroup.procs").exists()).collect())
}

fn below(hierarchy: &Path, group: &Path) -> PathBuf {
    hierarchy.join(group.strip_prefix("/").unwrap_or(group))
}

/// In version 2, lets the groups below this one have every controller that it has itself.
fn delegate(group: &Path) -> Result<()> {
    let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) else {
        return Ok(());
    };
    let target = group.join("cgroup.subtree_control");
    let wanted: Vec<String> = controllers.split_whitespace().map(|controller| format!("+{controller}")).collect();
    fs::write(&target, wanted.join(" ")).with_context(|| format!("cannot write {}", target.display()))
}

/// In version 1, a new group of `cpuset` takes no process until it has what its parent has.
fn inherit(parent: &Path, group: &Path) -> Result<()> {
    for file in INHERITED {
        let Ok(value) = fs::read_to_string(parent.join(file)) else { continue };
        let target = group.join(file);
        let empty = fs::read_to_string(&target).is_ok_and(|text| text.trim().is_empty());
        if empty && !value.trim().is_empty() {
            fs::write(&target, value).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> Result<()> {
    if !group.is_dir() {
        return Ok(());
    }
    for child in children(group)? {
        remove_tree(&child)?;
    }
    let deadline = Instant::now() + REMOVE_LIMIT;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the control group {}", group.display()));
            }
            _ => return Ok(()),
        }
    }
}

fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    entries
        .filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => Some(Ok(entry.path())),
            Ok(_) => None,
            Err(error) => Some(Err(error).with_context(|| format!("cannot list {}", folder.display()))),
        })
        .collect()
}
