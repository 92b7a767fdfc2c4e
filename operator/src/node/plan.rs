//! What to do to the files of one registry: `(wish, what was there before us, what is there) → steps`. Pure.
//! May import `names`, `mark`, `hosts`, `record` and `view`.

use std::{path::Path, time::Duration};

use crds::{node_mirror::NodeEntry, nodes::Foreign};

use super::{
    hosts::{self, Below},
    mark::{Owner, mark},
    names,
    record::{Original, Record},
    view::{Directory, View},
};

/// What the files shall say.
#[derive(Clone, Copy, Debug)]
pub enum Wish<'a> {
    /// What an entry says.
    InForce(&'a NodeEntry),
    /// What they say now, since it is not known whether the cache answers.
    AsIs(&'a NodeEntry),
    /// What they said before us, for as long as the cache does not answer.
    Withdrawn(&'a NodeEntry),
    /// What they said before us, for good.
    Away,
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Its name in its directory.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// When it shall seem written, since 1970; unset: now.
    pub modified: Option<Duration>,
}

/// One change. Each leaves the old or the new state, never a part, and may be done again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep what was there before us.
    Remember(Record),
    /// It is back; keep it no longer.
    Forget,
    /// Keep what someone made of our file, for that someone.
    KeepEdited(Vec<u8>),
    /// Make a directory that has its files from the first moment on: an empty one would hide `_default`.
    MakeDirectory(String, Vec<NewFile>),
    /// Write a file of a directory.
    WriteFile(String, NewFile),
    /// Put a symbolic link in the place of hosts.toml.
    Link(String, Vec<u8>),
    /// Remove a file of a directory.
    RemoveFile(String, String),
    /// Remove a directory with all that is in it.
    RemoveDirectory(String),
}

/// What the files of a registry are once the steps are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They name the cache as the entry says.
    InForce,
    /// They name the cache as another version of the entry said.
    Older,
    /// They do not.
    Absent,
    /// They stay as they are, because of someone else's.
    Conflict(Conflict),
}

/// Why someone else's files stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Our file was edited.
    #[error(
        "{0} was edited by hand and is left alone; delete that file, or set nodes.foreign: Replace in the RegistryMirror"
    )]
    EditedByHand(String),
    /// There is another configuration, and the entry says to leave it.
    #[error("{0} is someone else's and nodes.foreign is Skip; remove it, or set nodes.foreign: Prepend or Replace")]
    ForeignConfiguration(String),
    /// It cannot be merged.
    #[error("the cache cannot be put before what {0} says: {1}; correct that file, or set nodes.foreign: Replace")]
    ForeignUnparsable(String, String),
    /// It cannot even be read.
    #[error("{0} cannot be read from the agent's mount; make it a plain file, or remove it")]
    ForeignUnreadable(String),
    /// The directory speaks for other registries too.
    #[error(
        "{0} is a symbolic link within certs.d, or the target of one, and would speak for other registries; make it a directory of its own"
    )]
    SharedDirectory(String),
}

impl Conflict {
    /// It in one word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EditedByHand(_) => "EditedByHand",
            Self::ForeignConfiguration(_) => "ForeignConfiguration",
            Self::ForeignUnparsable(..) => "ForeignUnparsable",
            Self::ForeignUnreadable(_) => "ForeignUnreadable",
            Self::SharedDirectory(_) => "SharedDirectory",
        }
    }
}

/// Steps, and what is the case after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// The case after them.
    pub outcome: Outcome,
}

impl Plan {
    fn nothing(outcome: Outcome) -> Self {
        Self { steps: vec![], outcome }
    }
}

/// What to do now. When its steps are done, ask again: there may be more, and in the end there are none.
#[must_use]
pub fn plan(root: &Path, wish: Wish<'_>, record: Option<&Record>, view: &View) -> Plan {
    match wish {
        Wish::Away => Plan { steps: away(record, view), outcome: Outcome::Absent },
        Wish::Withdrawn(entry) => match conflict(entry, record, view) {
            Some(conflict) => in_conflict(conflict, record, view),
            None => Plan { steps: away(record, view), outcome: Outcome::Absent },
        },
        Wish::AsIs(entry) => {
            let wanted = in_force(root, entry, record, view);
            let same = wanted.steps.is_empty() || matches!(wanted.outcome, Outcome::Conflict(_));
            let ours = view.exact.as_ref().is_some_and(|exact| exact.owner() == Some(Owner::Us));
            Plan::nothing(match (same, ours) {
                (true, _) => wanted.outcome,
                (false, true) => Outcome::Older,
                (false, false) => Outcome::Absent,
            })
        }
        Wish::InForce(entry) => in_force(root, entry, record, view),
    }
}

fn in_force(root: &Path, entry: &NodeEntry, record: Option<&Record>, view: &View) -> Plan {
    let place = view.exact.as_ref().map_or_else(|| names::preferred(&entry.registry), |found| found.name.clone());
    if record.is_some_and(|record| record.dir != place || record.root != root) {
        // The runtime reads another directory by now: leave the old one first.
        return Plan { steps: away(record, view), outcome: Outcome::Absent };
    }
    if let Some(conflict) = conflict(entry, record, view) {
        return in_conflict(conflict, record, view);
    }
    let before = before(root, &place, record, view);
    let below = below(&before, entry.foreign, view);
    match hosts::body(entry, &below) {
        Ok(body) => Plan { steps: writes(entry, &body, record, before, view), outcome: Outcome::InForce },
        Err(error) => {
            let path = format!("{}/{}", below.path.trim_start_matches("../").trim_end_matches('/'), names::HOSTS);
            let path = if below.path.is_empty() { format!("{place}/{}", names::HOSTS) } else { path };
            let conflict = Conflict::ForeignUnparsable(path, error.to_string());
            Plan { steps: away(record, view), outcome: Outcome::Conflict(conflict) }
        }
    }
}

/// What is ours goes if it was in force so far; what someone edited stays.
fn in_conflict(conflict: Conflict, record: Option<&Record>, view: &View) -> Plan {
    let edited = matches!(conflict, Conflict::EditedByHand(_));
    let steps = if edited { vec![] } else { away(record, view) };
    Plan { steps, outcome: Outcome::Conflict(conflict) }
}

fn conflict(entry: &NodeEntry, record: Option<&Record>, view: &View) -> Option<Conflict> {
    if let Some(exact) = &view.exact {
        let path = format!("{}/{}", exact.name, names::HOSTS);
        if exact.aliased {
            return Some(Conflict::SharedDirectory(exact.name.clone()));
        }
        if exact.unreadable {
            return Some(Conflict::ForeignUnreadable(path));
        }
        if exact.owner() == Some(Owner::UsEdited) && entry.foreign != Foreign::Replace {
            return Some(Conflict::EditedByHand(path));
        }
    }
    (entry.foreign == Foreign::Skip).then(|| foreign(record, view).map(Conflict::ForeignConfiguration))?
}

/// Configuration of someone else that is, or was, in force for the registry.
fn foreign(record: Option<&Record>, view: &View) -> Option<String> {
    let hosts = |name: &str| format!("{name}/{}", names::HOSTS);
    let speaks = |found: &Directory| {
        (found.owner() == Some(Owner::Other) || !found.certificates.is_empty()).then(|| hosts(&found.name))
    };
    if let Some(record) = record.filter(|record| record.hosts != Original::None) {
        return Some(hosts(&record.dir));
    }
    match &view.exact {
        Some(exact) if record.is_none_or(|record| record.existed) => speaks(exact),
        _ => view.shared.as_ref().and_then(speaks),
    }
}

/// What was there before us: what is remembered while our file is in force or gone, else what is there.
fn before(root: &Path, place: &str, record: Option<&Record>, view: &View) -> Record {
    let fresh = |existed, hosts| Record { root: root.to_owned(), dir: place.to_owned(), existed, hosts };
    match (&view.exact, record) {
        (Some(exact), _) if exact.owner() == Some(Owner::Other) => match record {
            Some(record) if record.hosts.is_like(&exact.hosts) => record.clone(),
            _ => fresh(true, exact.hosts.clone()),
        },
        (_, Some(record)) => record.clone(),
        // Ours without a memory of it: someone emptied the state folder.
        (Some(exact), None) if exact.owner().is_some() => fresh(exact.others, Original::None),
        (exact, None) => fresh(exact.is_some(), Original::None),
    }
}

fn below(before: &Record, foreign: Foreign, view: &View) -> Below {
    if foreign == Foreign::Replace {
        return Below::default();
    }
    let text = |hosts: &Original| hosts.content().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    if before.existed {
        let certificates = view.exact.as_ref().map(|exact| exact.certificates.clone()).unwrap_or_default();
        return Below { text: text(&before.hosts), certificates, path: String::new() };
    }
    // Our directory hides this one, so its hosts are asked behind ours.
    let Some(shared) = view.shared.as_ref().filter(|shared| !shared.unreadable) else { return Below::default() };
    let found = Below {
        text: text(&shared.hosts),
        certificates: shared.certificates.clone(),
        path: format!("../{}/", shared.name),
    };
    // A runtime takes a broken file for none.
    let broken = found.text.as_ref().is_some_and(|text| text.parse::<toml_edit::DocumentMut>().is_err());
    if broken { Below::default() } else { found }
}

fn writes(entry: &NodeEntry, body: &str, record: Option<&Record>, before: Record, view: &View) -> Vec<Step> {
    let content = mark(body).into_bytes();
    let hosts = NewFile { name: names::HOSTS.to_owned(), content, mode: 0o644, modified: None };
    let authority = entry.ca_bundle.as_ref().map(|text| NewFile {
        name: names::authority(text),
        content: text.clone().into_bytes(),
        mode: 0o644,
        modified: None,
    });
    let dir = before.dir.clone();
    let mut steps = vec![];
    if record != Some(&before) {
        steps.push(Step::Remember(before));
    }
    let Some(exact) = &view.exact else {
        steps.push(Step::MakeDirectory(dir, authority.into_iter().chain([hosts]).collect()));
        return steps;
    };
    if exact.owner() == Some(Owner::UsEdited)
        && let Some(edited) = exact.hosts.content()
    {
        steps.push(Step::KeepEdited(edited.to_vec()));
    }
    let stale = exact.authorities.iter().filter(|(name, _)| authority.as_ref().is_none_or(|file| file.name != *name));
    let stale: Vec<_> = stale.map(|(name, _)| Step::RemoveFile(dir.clone(), name.clone())).collect();
    // A hosts.toml that names a file that is missing fails every pull: certificates first, stale ones last.
    if let Some(file) = authority.filter(|file| !exact.authorities.contains(&(file.name.clone(), true))) {
        steps.push(Step::WriteFile(dir.clone(), file));
    }
    let same = matches!(&exact.hosts, Original::File { content, mode, .. } if *content == hosts.content && *mode == hosts.mode);
    if !same {
        steps.push(Step::WriteFile(dir, hosts));
    }
    steps.extend(stale);
    steps
}

fn away(record: Option<&Record>, view: &View) -> Vec<Step> {
    let mut steps = vec![];
    let (found, existed, original) = match record {
        Some(record) => (&view.recorded, record.existed, &record.hosts),
        None => (&view.exact, view.exact.as_ref().is_some_and(|exact| exact.others), &Original::None),
    };
    if let Some(found) = found.as_ref().filter(|found| !found.aliased || record.is_some()) {
        if found.owner() == Some(Owner::UsEdited)
            && let Some(edited) = found.hosts.content()
        {
            steps.push(Step::KeepEdited(edited.to_vec()));
        }
        let theirs = found.owner() == Some(Owner::Other) || found.unreadable;
        let ours = found.owner().is_some() && !theirs;
        if !theirs && !existed && !found.others && *original == Original::None {
            if ours || !found.authorities.is_empty() || record.is_some() {
                steps.push(Step::RemoveDirectory(found.name.clone()));
            }
        } else {
            if !theirs {
                steps.extend(put_back(&found.name, original, ours));
            }
            let names = found.authorities.iter().map(|(name, _)| name.clone());
            steps.extend(names.map(|name| Step::RemoveFile(found.name.clone(), name)));
        }
    }
    if record.is_some() {
        steps.push(Step::Forget);
    }
    steps
}

fn put_back(dir: &str, original: &Original, ours: bool) -> Option<Step> {
    match original {
        Original::None => ours.then(|| Step::RemoveFile(dir.to_owned(), names::HOSTS.to_owned())),
        Original::File { content, mode, modified } => Some(Step::WriteFile(
            dir.to_owned(),
            NewFile { name: names::HOSTS.to_owned(), content: content.clone(), mode: *mode, modified: *modified },
        )),
        Original::Link { target, .. } => Some(Step::Link(dir.to_owned(), target.clone())),
    }
}
