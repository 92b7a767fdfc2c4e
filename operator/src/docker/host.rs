//! The steps: switch an engine over, watch the cache, put everything back. May import everything of this folder.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use crds::nodes::ProbeSpec;
use tokio::{sync::mpsc, time::sleep};

use super::{
    daemon_json::{self, Document},
    disk::{self, Disk},
    engine::{self, Daemon, Engine, Info},
    mirror::{Mirror, Unfit},
    plan::{self, INSECURE, Lists, MIRRORS, Record, State},
};
use crate::node::{
    agent::Event,
    plan::{Conflict, Outcome, Wish},
    probe::Verdict,
    probing::Probing,
};

/// Where the engine listens if nothing says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// Where it writes its process id.
const PID_FILE: &str = "/var/run/docker.pid";
/// Everything is looked at once in this time, whatever was not heard of.
const RESYNC: Duration = Duration::from_mins(1);
/// After something failed.
const RETRY: Duration = Duration::from_secs(5);

/// What pulls images on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// dockerd.
    Docker,
}

/// Where an engine has its files.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// What pulls images on this host.
    #[arg(long, value_enum)]
    pub runtime: Runtime,
    /// The configuration of dockerd.
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    pub daemon_json: PathBuf,
    /// The folder in which dockerd looks for certificates and hosts.toml.
    #[arg(long, value_name = "DIR", default_value = "/etc/docker/certs.d")]
    pub certs_dir: PathBuf,
    /// Where it is kept what there was before.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/entrepot/docker")]
    pub state_dir: PathBuf,
    /// Where dockerd listens. Default: what daemon.json says, else /var/run/docker.sock.
    #[arg(long, value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Where dockerd writes its process id. Default: what daemon.json says, else /var/run/docker.pid.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
}

/// What `operator node apply` is told.
#[derive(Args, Clone, Debug)]
pub struct ApplySettings {
    /// A registry, and the URL at the cache that its images come from: docker.io=http://HOST:8181. May be given again for
    /// further registries.
    #[arg(long = "mirror", value_name = "REGISTRY=URL", required = true)]
    pub mirrors: Vec<Mirror>,
    /// Certificates (PEM) that sign the cache's, for https:// URLs.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Go on asking the cache: take it out while it does not answer, and bring it back when it does.
    #[arg(long)]
    pub watch: bool,
    /// The host.
    #[command(flatten)]
    pub place: Place,
}

/// Why a host could not be switched over, or put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The engine and a mirror.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Its configuration cannot be changed.
    #[error(
        "{0}, {1}. dockerd would refuse this file at its next start too: correct it, then run this again. It is untouched"
    )]
    Json(PathBuf, daemon_json::Error),
    /// It reads another file.
    #[error("dockerd was started with --config-file {0}, and does not read {1}; run this with --daemon-json {0}")]
    OtherFile(String, PathBuf),
    /// It has the key as a flag.
    #[error(
        "dockerd was started with {0}, and loads no daemon.json that has {1:?} too; move what {0} says into {2} (the flag stands in dockerd's unit, see `systemctl cat docker`) and restart dockerd. Nothing was changed"
    )]
    Flag(String, String, PathBuf),
    /// It did not load its new configuration.
    #[error(
        "dockerd {version} did not take {path} as it was written ({why}); it says again what it said before, and what was in force still is"
    )]
    Refused {
        /// The engine's.
        version: String,
        /// What it was to load.
        path: PathBuf,
        /// Why, as far as it can be told.
        why: String,
    },
    /// It goes on with our mirror.
    #[error(
        "dockerd {0} still lists {1} ({2}). {3} is as it should be, so a restart of dockerd ends it; or remove the cause and run `operator node restore` again"
    )]
    StillListed(String, String, String, PathBuf),
    /// A mirror that does not answer.
    #[error("{0} does not answer this host as a mirror must: {1}. Nothing was changed")]
    NoAnswer(String, String),
    /// A hosts.toml that cannot be written.
    #[error("{0}")]
    Conflict(String),
    /// What was asked for.
    #[error("{0}")]
    Asked(String),
}

/// Switches the host over, and with `--watch` goes on until `stop` ends. Files stay as they are then.
///
/// # Errors
/// When it could not be. Without `--watch`, unless the message says otherwise, nothing is changed then.
pub async fn apply(settings: ApplySettings, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let authorities = authorities(&settings)?;
    let host = Host::new(settings.place, authorities)?;
    let _lock = host.disk.lock()?;
    if settings.watch { host.watch(&settings.mirrors, stop).await } else { host.apply(&settings.mirrors).await }
}

/// Puts the host back.
///
/// # Errors
/// When something could not be put back; run it again then.
pub async fn restore(place: Place) -> Result<(), Error> {
    let host = Host::new(place, None)?;
    if !host.disk.has_state() {
        say("nothing of Entrepôt's is on this host");
        return Ok(());
    }
    let _lock = host.disk.lock()?;
    host.restore().await
}

/// What is done, one line a step.
fn say(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}

/// The certificates that `--ca` names; mirrors are looked over with them.
fn authorities(settings: &ApplySettings) -> Result<Option<String>, Error> {
    let mut registries = BTreeSet::new();
    if let Some(twice) = settings.mirrors.iter().find(|mirror| !registries.insert(mirror.registry())) {
        return Err(Error::Asked(format!("--mirror names {} twice; one URL per registry", twice.registry())));
    }
    let Some(path) = &settings.ca else { return Ok(None) };
    if settings.mirrors.iter().all(Mirror::is_plain) {
        return Err(Error::Asked("--ca is for https:// URLs, and no --mirror has one".to_owned()));
    }
    let text = fs::read_to_string(path).map_err(|error| disk::Error::Io(path.clone(), error))?;
    Ok(Some(text))
}

/// The host and its engine.
struct Host {
    disk: Disk,
    engine: Engine,
    authorities: Option<String>,
}

impl Host {
    fn new(place: Place, authorities: Option<String>) -> Result<Self, Error> {
        let disk = Disk::new(place.daemon_json, place.certs_dir, place.state_dir);
        let text = disk.read()?.unwrap_or_default();
        let document = Document::parse(&text).map_err(|error| Error::Json(disk.daemon_json().to_owned(), error))?;
        let value = |key| document.value(key);
        let listens = value("hosts").and_then(|hosts| {
            hosts.as_array()?.iter().find_map(|host| host.as_str()?.strip_prefix("unix://").map(PathBuf::from))
        });
        let written = value("pidfile").and_then(|file| file.as_str().map(PathBuf::from));
        let socket = place.socket.or(listens).unwrap_or_else(|| SOCKET.into());
        let pid_file = place.pid_file.or(written).unwrap_or_else(|| PID_FILE.into());
        let engine = Engine::new(socket, pid_file).map_err(|error| Error::Asked(format!("no HTTP client: {error}")))?;
        Ok(Self { disk, engine, authorities })
    }

    /// Once: everything in force, or an error.
    async fn apply(&self, mirrors: &[Mirror]) -> Result<(), Error> {
        let daemon = self.engine.daemon().await?;
        for mirror in mirrors {
            self.check(&daemon, mirror)?;
        }
        self.ask(mirrors).await?;
        let mut changed = self.drop_others(mirrors).await?;
        for mirror in mirrors {
            changed |= self.switch_over(mirror).await?;
        }
        if !changed {
            say("everything was in force already; nothing was changed");
        }
        Ok(())
    }

    /// Whether the engine can be switched over to a mirror, before anything is.
    fn check(&self, daemon: &Daemon, mirror: &Mirror) -> Result<(), Error> {
        let Info { server_version, .. } = &daemon.info;
        mirror.fits(server_version, daemon.info.has_containerd_store(), self.authorities.as_deref())?;
        let path = self.disk.daemon_json();
        if let Some(other) = config_file(&daemon.arguments).filter(|other| !is_same_file(Path::new(other), path)) {
            return Err(Error::OtherFile(other, path.to_owned()));
        }
        if mirror.is_in_daemon_json() {
            if let Some((flag, key)) = plan::conflict(&daemon.arguments, &[MIRRORS, INSECURE]) {
                return Err(Error::Flag(flag, key, path.to_owned()));
            }
            let current = self.disk.read()?;
            plan::merged(current.as_deref(), &mirror.lists()).map_err(|error| self.json(error))?;
        }
        Ok(())
    }

    /// Asks each mirror until it is known whether it answers.
    async fn ask(&self, mirrors: &[Mirror]) -> Result<(), Error> {
        let (send, mut events) = mpsc::unbounded_channel();
        let mut probing = Probing::new(send);
        let spec = ProbeSpec::default();
        let target = |mirror: &Mirror| mirror.target(self.authorities.as_deref());
        probing.ask(mirrors.iter().map(|mirror| (target(mirror), spec.clone())));
        for mirror in mirrors {
            loop {
                match probing.verdict(&target(mirror), &spec) {
                    (Verdict::Unknown, _) => match events.recv().await {
                        Some(Event::Verdict(event)) => probing.hear(event),
                        _ => return Err(Error::Asked("the probes ended".to_owned())),
                    },
                    (Verdict::Up, _) => break,
                    (Verdict::Down, why) => return Err(no_answer(mirror, why)),
                }
            }
            say(format!("{}/v2/ answers this host", mirror.url()));
        }
        Ok(())
    }

    /// What was switched over once and is not wanted any more.
    async fn drop_others(&self, mirrors: &[Mirror]) -> Result<bool, Error> {
        let mut changed = false;
        if !mirrors.iter().any(Mirror::is_in_daemon_json) {
            changed |= self.forget_daemon_json().await?;
        }
        for registry in self.disk.hosts().remembered().map_err(disk::Error::from)?.keys() {
            if !mirrors.iter().any(|mirror| mirror.registry() == registry) {
                changed |= self.hosts(registry, Wish::Away)?;
            }
        }
        Ok(changed)
    }

    /// Whether anything had to be changed to have the engine ask a mirror first.
    async fn switch_over(&self, mirror: &Mirror) -> Result<bool, Error> {
        if mirror.is_in_daemon_json() {
            return self.switch_over_daemon_json(mirror).await;
        }
        let daemon = self.engine.daemon().await?;
        self.check(&daemon, mirror)?;
        let entry = mirror.entry(self.authorities.as_deref());
        self.hosts(mirror.registry(), Wish::InForce(&entry))
    }

    async fn switch_over_daemon_json(&self, mirror: &Mirror) -> Result<bool, Error> {
        let daemon = self.engine.daemon().await?;
        self.check(&daemon, mirror)?;
        let mut changed = false;
        let ours = mirror.lists();
        if self.disk.record()?.is_some_and(|record| record.ours != ours) {
            changed |= self.forget_daemon_json().await?;
        }
        changed |= self.trust(mirror)?;
        if mirror.needs_hosts(daemon.info.has_containerd_store(), self.authorities.as_deref()) {
            let entry = mirror.entry(self.authorities.as_deref());
            changed |= self.hosts(mirror.registry(), Wish::InForce(&entry))?;
        } else if self.has_hosts(mirror)? {
            changed |= self.hosts(mirror.registry(), Wish::Away)?;
        }
        let current = self.disk.read()?;
        let before = match self.disk.record()? {
            None => current.clone(),
            Some(record) => {
                if record.state(current.as_deref()).map_err(|error| self.json(error))? == State::Edited {
                    say(format!("{} was changed by someone since; that stays", self.disk.daemon_json().display()));
                }
                record.without(current.as_deref()).map_err(|error| self.json(error))?
            }
        };
        let merged = plan::merged(before.as_deref(), &ours).map_err(|error| self.json(error))?;
        if current.as_deref() == Some(&merged) && daemon.info.has(&ours) {
            return Ok(changed);
        }
        self.disk.remember(&Record { before: before.clone(), ours: ours.clone() })?;
        self.disk.write(Some(&merged))?;
        say(format!("wrote {} into {}", keys(&ours), self.disk.daemon_json().display()));
        let (taken, info) = self.engine.reload(&daemon, |info| info.has(&ours)).await?;
        if taken {
            say(format!(
                "dockerd {} (process {}) loaded it without a restart, and says: {}",
                info.server_version,
                daemon.pid,
                shown(&info)
            ));
            return Ok(true);
        }
        self.take_back(&daemon, before.as_deref(), &ours).await?;
        let why = why(&daemon, &merged);
        Err(Error::Refused { version: info.server_version, path: self.disk.daemon_json().to_owned(), why })
    }

    /// After a refusal: the file as it was, and nothing of ours in force should the engine only have been slow.
    async fn take_back(&self, daemon: &Daemon, before: Option<&str>, ours: &Lists) -> Result<(), Error> {
        self.disk.write(before)?;
        let gone = ours.minus(&Lists::of(before).map_err(|error| self.json(error))?);
        if self.engine.daemon().await?.info.has_none_of(&gone) {
            self.disk.forget()?;
            return Ok(());
        }
        let record = Record { before: before.map(str::to_owned), ours: ours.clone() };
        self.retreat(&record, Some(daemon)).await?;
        self.disk.forget()?;
        Ok(())
    }

    /// Whether anything had to be changed to have nothing of ours in daemon.json, and in force.
    async fn withdraw_daemon_json(&self) -> Result<bool, Error> {
        let Some(record) = self.disk.record()? else { return Ok(false) };
        let daemon = self.engine.running().await?;
        self.retreat(&record, daemon.as_ref()).await
    }

    async fn forget_daemon_json(&self) -> Result<bool, Error> {
        let changed = self.withdraw_daemon_json().await?;
        self.disk.forget()?;
        if let Some(path) = self.disk.distrust()? {
            say(format!("removed {}", path.display()));
        }
        Ok(changed)
    }

    async fn retreat(&self, record: &Record, daemon: Option<&Daemon>) -> Result<bool, Error> {
        let path = self.disk.daemon_json();
        let current = self.disk.read()?;
        let retreat = record.retreat(current.as_deref()).map_err(|error| self.json(error))?;
        let stay = Lists::of(Some(&retreat.interim)).map_err(|error| self.json(error))?;
        let gone = record.ours.minus(&stay);
        let Some(daemon) = daemon else {
            let changed = current != retreat.last;
            self.disk.write(retreat.last.as_deref())?;
            if changed {
                say(format!("{}; dockerd does not run, and will start with it", restored(path, &retreat)));
            }
            return Ok(changed);
        };
        if current == retreat.last && daemon.info.has_none_of(&gone) {
            return Ok(false);
        }
        self.disk.write(Some(&retreat.interim))?;
        let reloaded = self.engine.reload(daemon, |info| info.has_none_of(&gone)).await;
        // Whatever came of it: what dockerd starts with the next time is what it had before us.
        self.disk.write(retreat.last.as_deref())?;
        let (taken, info) = reloaded?;
        if !taken {
            let why = why(daemon, &retreat.interim);
            let listed = gone.mirrors.join(", ");
            return Err(Error::StillListed(info.server_version, listed, why, path.to_owned()));
        }
        say(format!(
            "dockerd {} (process {}) loaded the lists without the cache, without a restart, and says: {}",
            info.server_version,
            daemon.pid,
            shown(&info)
        ));
        say(restored(path, &retreat));
        Ok(true)
    }

    /// Has the engine trust a mirror's certificate.
    fn trust(&self, mirror: &Mirror) -> Result<bool, Error> {
        let Some(content) = self.authorities.as_deref().filter(|_| !mirror.is_plain()) else { return Ok(false) };
        let written = self.disk.trust(mirror.authority(), content)?;
        if let Some(path) = &written {
            say(format!("wrote the certificates of --ca to {}, which dockerd reads at each pull", path.display()));
        }
        Ok(written.is_some())
    }

    /// Whether a hosts.toml had to be changed for a wish.
    fn hosts(&self, registry: &str, wish: Wish<'_>) -> Result<bool, Error> {
        let folder = self.disk.certificates();
        let done = self.disk.hosts().fulfil(folder, registry, wish).map_err(disk::Error::from)?;
        match &done.plan.outcome {
            Outcome::Conflict(conflict) => return Err(Error::Conflict(in_conflict(folder, conflict))),
            Outcome::InForce if done.changed => {
                say(format!("wrote {}/{registry}/hosts.toml, which dockerd reads at each pull", folder.display()));
            }
            Outcome::Absent if done.changed => {
                say(format!("{}: what it says of {registry} is as it was before", folder.display()));
            }
            Outcome::InForce | Outcome::Older | Outcome::Absent => {}
        }
        Ok(done.changed)
    }

    async fn restore(&self) -> Result<(), Error> {
        let mut changed = self.forget_daemon_json().await?;
        for registry in self.disk.hosts().remembered().map_err(disk::Error::from)?.keys() {
            changed |= self.hosts(registry, Wish::Away)?;
        }
        self.disk.leave()?;
        if !changed {
            say("nothing of Entrepôt's was in force on this host");
        }
        Ok(())
    }

    /// Until `stop` ends: a mirror is in force while it answers.
    async fn watch(&self, mirrors: &[Mirror], stop: impl Future<Output = ()>) -> Result<(), Error> {
        let (send, mut events) = mpsc::unbounded_channel();
        let mut probing = Probing::new(send);
        let spec = ProbeSpec::default();
        let target = |mirror: &Mirror| mirror.target(self.authorities.as_deref());
        probing.ask(mirrors.iter().map(|mirror| (target(mirror), spec.clone())));
        tokio::pin!(stop);
        let mut told = Told::default();
        loop {
            let mut failed = told.result("", self.drop_others(mirrors).await);
            for mirror in mirrors {
                let (verdict, why) = probing.verdict(&target(mirror), &spec);
                told.verdict(mirror, verdict, why);
                let done = match verdict {
                    // Whatever is in force stays so, also what a run before this one left.
                    Verdict::Unknown => Ok(false),
                    Verdict::Up => self.switch_over(mirror).await,
                    Verdict::Down => self.withdraw(mirror).await,
                };
                failed |= told.result(mirror.registry(), done);
            }
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Verdict(event)) => probing.hear(event),
                    _ => return Err(Error::Asked("the probes ended".to_owned())),
                },
                () = sleep(if failed { RETRY } else { RESYNC }) => {}
                () = &mut stop => {
                    say("ended; everything stays as it is (`operator node restore` puts it back)");
                    return Ok(());
                }
            }
        }
    }

    async fn withdraw(&self, mirror: &Mirror) -> Result<bool, Error> {
        let mut changed = false;
        if !mirror.is_in_daemon_json() || self.has_hosts(mirror)? {
            let entry = mirror.entry(self.authorities.as_deref());
            changed |= self.hosts(mirror.registry(), Wish::Withdrawn(&entry))?;
        }
        if mirror.is_in_daemon_json() {
            changed |= self.withdraw_daemon_json().await?;
        }
        Ok(changed)
    }

    /// Whether hosts.toml of the mirror's registry is not as it was before us.
    fn has_hosts(&self, mirror: &Mirror) -> Result<bool, Error> {
        Ok(self.disk.hosts().remembered().map_err(disk::Error::from)?.contains_key(mirror.registry()))
    }

    fn json(&self, error: daemon_json::Error) -> Error {
        Error::Json(self.disk.daemon_json().to_owned(), error)
    }
}

/// What was said already, so that it is not said again every minute.
#[derive(Default)]
struct Told {
    verdicts: Vec<(String, Verdict)>,
    errors: Vec<(String, String)>,
}

impl Told {
    fn verdict(&mut self, mirror: &Mirror, verdict: Verdict, why: Option<String>) {
        let now = (mirror.registry().to_owned(), verdict);
        if verdict == Verdict::Unknown || self.verdicts.contains(&now) {
            return;
        }
        self.verdicts.retain(|(registry, _)| registry != mirror.registry());
        self.verdicts.push(now);
        match verdict {
            Verdict::Up => say(format!("{}/v2/ answers this host", mirror.url())),
            _ => say(format!(
                "{}; {} is pulled as if the cache were not there until it does",
                no_answer(mirror, why).to_string().trim_end_matches(". Nothing was changed"),
                mirror.registry()
            )),
        }
    }

    /// Whether it failed.
    fn result(&mut self, of: &str, result: Result<bool, Error>) -> bool {
        let error = result.err().map(|error| (of.to_owned(), error.to_string()));
        let known = self.errors.iter().position(|(whose, _)| whose == of).map(|place| self.errors.swap_remove(place));
        let failed = error.is_some();
        if let Some(error) = error {
            if known.as_ref() != Some(&error) {
                eprintln!("error: {}; it is tried again every {} s", error.1, RETRY.as_secs());
            }
            self.errors.push(error);
        }
        failed
    }
}

/// Why an engine takes no new configuration, as far as it can be told from outside.
fn why(daemon: &Daemon, text: &str) -> String {
    let document = Document::parse(text);
    let keys: Vec<_> = document.iter().flat_map(Document::keys).collect();
    match plan::conflict(&daemon.arguments, &keys) {
        Some((flag, key)) => {
            format!("it was started with {flag}, and the file has {key:?} too; remove one of them")
        }
        None => {
            "its log says why, see `journalctl -u docker`: most often a key that this dockerd does not know".to_owned()
        }
    }
}

fn no_answer(mirror: &Mirror, why: Option<String>) -> Error {
    let why = why.unwrap_or_else(|| "no answer".to_owned());
    let hint = match why.split_whitespace().nth(2) {
        Some("401,") => "; it wants a login, and dockerd has none for a mirror: set anonymousPull: true there",
        Some("404,") => "; no repository is served there: name one, or its port connector, in the URL",
        _ => "",
    };
    Error::NoAnswer(format!("{}/v2/", mirror.url()), format!("{why}{hint}"))
}

fn in_conflict(folder: &Path, conflict: &Conflict) -> String {
    let folder = folder.display();
    match conflict {
        Conflict::EditedByHand(path) => {
            format!("{folder}/{path} was edited by hand and is left alone; delete that file and run this again")
        }
        Conflict::ForeignUnparsable(path, why) => {
            format!("the cache cannot be put before what {folder}/{path} says: {why}; correct that file")
        }
        other => format!("in {folder}: {other}"),
    }
}

fn restored(path: &Path, retreat: &plan::Retreat) -> String {
    let path = path.display();
    match (retreat.found, &retreat.last) {
        (State::Edited, Some(_)) => {
            format!("{path} was changed by someone since; only what Entrepôt had added is taken out of it")
        }
        (State::Edited, None) => format!("{path} was removed by someone since, and stays so"),
        (_, Some(_)) => format!("{path} is byte for byte what it was"),
        (_, None) => format!("{path} is gone again, as there was none before"),
    }
}

fn keys(lists: &Lists) -> String {
    let mirrors = format!("{MIRRORS} {}", lists.mirrors.join(", "));
    if lists.insecure.is_empty() { mirrors } else { format!("{mirrors} and {INSECURE} {}", lists.insecure.join(", ")) }
}

/// As `docker info` shows it.
fn shown(info: &Info) -> String {
    let Lists { mirrors, insecure } = info.lists();
    let list = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    format!("Registry Mirrors: {}; Insecure Registries: {}", list(mirrors), list(insecure))
}

/// The configuration file that an engine was told to read.
fn config_file(arguments: &[String]) -> Option<String> {
    let place = arguments.iter().position(|word| word.starts_with("--config-file"))?;
    let (_, file) = arguments[place].split_once('=').unwrap_or(("", arguments.get(place + 1)?));
    Some(file.to_owned())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || fs::canonicalize(one).ok().is_some_and(|one| fs::canonicalize(other).ok() == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_an_engine_reads_is_found_in_both_spellings() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        for found in [&["dockerd", "--config-file=/x", "-D"][..], &["dockerd", "--config-file", "/x"]] {
            assert_eq!(config_file(&words(found)).as_deref(), Some("/x"));
        }
        assert_eq!(config_file(&words(&["dockerd", "-H", "fd://"])), None);
    }
}
