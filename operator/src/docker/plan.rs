//! What daemon.json shall say: with our mirror, without it, and in between. Pure. May import `daemon_json`.

use serde::{Deserialize, Serialize};

use super::daemon_json::{Document, Error};

/// The key of mirrors.
pub const MIRRORS: &str = "registry-mirrors";
/// The key of registries that are asked over plain HTTP.
pub const INSECURE: &str = "insecure-registries";

/// Elements of the two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists {
    /// URLs, under [`MIRRORS`].
    pub mirrors: Vec<String>,
    /// Hosts with ports, or networks, under [`INSECURE`].
    pub insecure: Vec<String>,
}

impl Lists {
    /// The keys that these lists have something for, with that.
    fn keys(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        [(MIRRORS, self.mirrors.as_slice()), (INSECURE, self.insecure.as_slice())]
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
    }

    /// The lists of a daemon.json.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(text: Option<&str>) -> Result<Self, Error> {
        let document = Document::parse(text.unwrap_or_default())?;
        let list = |key| document.list(key).map(Option::unwrap_or_default);
        Ok(Self { mirrors: list(MIRRORS)?, insecure: list(INSECURE)? })
    }

    /// What is in these and not in others.
    #[must_use]
    pub fn minus(&self, others: &Self) -> Self {
        let minus = |list: &[String], others: &[String]| {
            list.iter().filter(|one| !others.iter().any(|other| is_same(one, other))).cloned().collect()
        };
        Self { mirrors: minus(&self.mirrors, &others.mirrors), insecure: minus(&self.insecure, &others.insecure) }
    }
}

/// What is remembered of a daemon.json that we changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it said before us; `None`: there was none.
    pub before: Option<String>,
    /// What we added.
    pub ours: Lists,
}

/// Whose the text of a daemon.json is that we have a record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was before us.
    Before,
    /// As we wrote it.
    Ours,
    /// As someone left it who changed it since.
    Edited,
}

/// How our elements go: the engine forgets them by the first text, and starts with the second the next time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retreat {
    /// To be loaded: a key that is absent would leave its list in force, an empty list does not.
    pub interim: String,
    /// To be left.
    pub last: Option<String>,
    /// Whose what was found is.
    pub found: State,
}

impl Record {
    /// Whose a text is.
    ///
    /// # Errors
    /// When what was kept cannot be read.
    pub fn state(&self, current: Option<&str>) -> Result<State, Error> {
        if current == self.before.as_deref() {
            return Ok(State::Before);
        }
        let ours = [merged(self.before.as_deref(), &self.ours)?, cleared(self.before.as_deref(), &self.ours)?];
        Ok(if ours.iter().any(|text| Some(text.as_str()) == current) { State::Ours } else { State::Edited })
    }

    /// What the file would say without us: byte for byte what it said before, unless someone changed it since.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn without(&self, current: Option<&str>) -> Result<Option<String>, Error> {
        let State::Edited = self.state(current)? else { return Ok(self.before.clone()) };
        let Some(current) = current else { return Ok(None) };
        let before = Document::parse(self.before.as_deref().unwrap_or_default())?;
        let mut text = current.to_owned();
        for (key, ours) in self.ours.keys() {
            let document = Document::parse(&text)?;
            let Some(list) = document.list(key)? else { continue };
            let theirs = before.list(key)?;
            let was_theirs = |one: &String| theirs.as_ref().is_some_and(|theirs| theirs.contains(one));
            let rest: Vec<_> = list.iter().filter(|one| !ours.contains(one) || was_theirs(one)).cloned().collect();
            if rest.len() == list.len() {
                continue;
            }
            text = if rest.is_empty() && theirs.is_none() {
                document.without(key)
            } else {
                document.with_list(key, &rest)
            };
        }
        Ok(Some(text))
    }

    /// How to take our elements out of what the file says now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn retreat(&self, current: Option<&str>) -> Result<Retreat, Error> {
        let last = self.without(current)?;
        let interim = cleared(last.as_deref(), &self.ours)?;
        Ok(Retreat { interim, last, found: self.state(current)? })
    }
}

/// A text with our elements before those that are there.
///
/// # Errors
/// When it cannot be read.
pub fn merged(before: Option<&str>, ours: &Lists) -> Result<String, Error> {
    let mut text = before.unwrap_or_default().to_owned();
    for (key, ours) in ours.keys() {
        let document = Document::parse(&text)?;
        let theirs = document.list(key)?.unwrap_or_default();
        let theirs = theirs.into_iter().filter(|one| !ours.iter().any(|our| is_same(our, one)));
        let list: Vec<_> = ours.iter().cloned().chain(theirs).collect();
        text = document.with_list(key, &list);
    }
    Ok(text)
}

/// A text in which the keys that we use are, if only with an empty list.
fn cleared(before: Option<&str>, ours: &Lists) -> Result<String, Error> {
    let mut text = before.unwrap_or_default().to_owned();
    for (key, _) in ours.keys() {
        let document = Document::parse(&text)?;
        if document.list(key)?.is_none() {
            text = document.with_list(key, &[]);
        }
    }
    Ok(text)
}

/// Whether two elements mean the same: the engine puts a `/` behind each mirror.
#[must_use]
pub fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// A key that daemon.json has while dockerd was started with the same as a flag: it loads no such file. The flag comes
/// first, the key second.
#[must_use]
pub fn conflict(arguments: &[String], keys: &[&str]) -> Option<(String, String)> {
    for argument in arguments.iter().skip(1) {
        let flag = argument.split('=').next().unwrap_or_default();
        let Some(name) = flag.strip_prefix("--").or_else(|| (flag == "-H").then_some("host")) else { continue };
        // A flag that may be repeated has a key in the plural.
        let plural = name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
        if let Some(key) = keys.iter().find(|key| **key == name || **key == plural) {
            return Some((flag.to_owned(), (*key).to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const MIRROR: &str = "http://10.0.2.2:8181";

    fn ours() -> Lists {
        Lists { mirrors: vec![MIRROR.to_owned()], insecure: vec!["10.0.2.2:8181".to_owned()] }
    }

    fn record(before: Option<&str>) -> Record {
        Record { before: before.map(str::to_owned), ours: ours() }
    }

    #[test]
    fn ours_comes_first_and_everything_else_stays() {
        let before = "{\n  \"log-level\": \"debug\",\n  \"registry-mirrors\": [\"https://m.test/\"]\n}\n";
        assert_eq!(
            merged(Some(before), &ours()).unwrap(),
            "{\n  \"log-level\": \"debug\",\n  \"registry-mirrors\": [\"http://10.0.2.2:8181\", \"https://m.test/\"],\n  \"insecure-registries\": [\"10.0.2.2:8181\"]\n}\n"
        );
        let same = format!("{{\"registry-mirrors\": [\"https://m.test\", \"{MIRROR}/\"]}}");
        let lists = Lists::of(Some(&merged(Some(&same), &ours()).unwrap())).unwrap();
        assert_eq!(lists.mirrors, [MIRROR, "https://m.test"]);
    }

    #[test]
    fn what_was_there_comes_back_byte_for_byte_after_the_lists_were_emptied() {
        for before in [None, Some(""), Some("{}"), Some("{\"debug\":true  }\n"), Some("{\"registry-mirrors\":[]}")] {
            let record = record(before);
            let now = merged(before, &ours()).unwrap();
            let retreat = record.retreat(Some(&now)).unwrap();
            assert_eq!(retreat.found, State::Ours);
            assert_eq!(retreat.last.as_deref(), before);
            let interim: Value = serde_json::from_str(&retreat.interim).unwrap();
            assert_eq!((&interim[MIRRORS], &interim[INSECURE]), (&Value::from([""; 0]), &Value::from([""; 0])));
            // A crash between the two.
            let again = record.retreat(Some(&retreat.interim)).unwrap();
            assert_eq!((again.last.as_deref(), again.interim), (before, retreat.interim));
        }
    }

    #[test]
    fn what_someone_added_since_stays_and_only_ours_goes() {
        let now = merged(Some("{\n  \"debug\": true\n}\n"), &ours()).unwrap();
        let edited = now.replace("true", "false").replace("181\"]\n", "181\", \"other:5000\"]\n");
        let retreat = record(Some("{\n  \"debug\": true\n}\n")).retreat(Some(&edited)).unwrap();
        assert_eq!(retreat.found, State::Edited);
        assert_eq!(
            retreat.last.as_deref(),
            Some("{\n  \"debug\": false,\n  \"insecure-registries\": [\"other:5000\"]\n}\n")
        );
        assert_eq!(Lists::of(Some(&retreat.interim)).unwrap().mirrors, [""; 0]);
        assert!(retreat.interim.contains(MIRRORS));
    }

    #[test]
    fn what_someone_removed_since_stays_removed() {
        let record = record(Some("{\"debug\": true}"));
        assert_eq!(record.retreat(None).unwrap().last, None);
        let edited = "{\"debug\": true, \"log-level\": \"warn\"}";
        assert_eq!(record.retreat(Some(edited)).unwrap().last.as_deref(), Some(edited));
        assert!(record.retreat(Some("{ // mine\n}")).is_err());
    }

    #[test]
    fn an_element_that_was_theirs_before_is_not_taken_out() {
        let before = format!("{{\"registry-mirrors\": [\"{MIRROR}\"]}}");
        let record = record(Some(&before));
        let now = merged(Some(&before), &ours()).unwrap();
        assert_eq!(record.retreat(Some(&now)).unwrap().last, Some(before.clone()));
        let edited = now.replace('}', ", \"debug\": true}");
        let last = record.retreat(Some(&edited)).unwrap().last;
        assert_eq!(Lists::of(last.as_deref()).unwrap().mirrors, [MIRROR]);
        assert_eq!(ours().minus(&Lists::of(last.as_deref()).unwrap()).mirrors, [""; 0]);
    }

    #[test]
    fn a_key_that_is_a_flag_too_is_found() {
        let flags = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let keys = [MIRRORS, INSECURE, "hosts", "debug"];
        let found = |words: &[&str]| conflict(&flags(words), &keys);
        let some = |flag: &str, key: &str| Some((flag.to_owned(), key.to_owned()));
        assert_eq!(found(&["dockerd", "--registry-mirror=http://x"]), some("--registry-mirror", MIRRORS));
        assert_eq!(found(&["dockerd", "--insecure-registry", "x"]), some("--insecure-registry", INSECURE));
        assert_eq!(found(&["dockerd", "-H", "fd://"]), some("-H", "hosts"));
        assert_eq!(found(&["dockerd", "--debug"]), some("--debug", "debug"));
        assert_eq!(found(&["dockerd", "--containerd=/run/containerd/containerd.sock"]), None);
    }

    proptest! {
        #[test]
        fn taking_out_what_was_merged_means_the_same_as_before(
            mirrors in prop::option::of(prop::collection::vec("https?://[a-c]\\.test/?", 0..3)),
            insecure in prop::option::of(prop::collection::vec("[a-c]:5000", 0..3)),
            debug in any::<bool>(),
            touched in any::<bool>(),
        ) {
            let mut object = serde_json::Map::new();
            object.insert("debug".to_owned(), debug.into());
            for (key, list) in [(MIRRORS, mirrors), (INSECURE, insecure)] {
                if let Some(list) = list {
                    object.insert(key.to_owned(), list.into());
                }
            }
            let before = Value::Object(object).to_string();
            let record = record(Some(&before));
            let mut now = merged(Some(&before), &ours()).unwrap();
            if touched {
                // As if someone had edited it: no byte tells that it is ours, and only its meaning can come back.
                now.push('\n');
            }
            let last = record.retreat(Some(&now)).unwrap().last.unwrap();
            if touched {
                let meant: (Value, Value) =
                    (serde_json::from_str(&last).unwrap(), serde_json::from_str(&before).unwrap());
                prop_assert_eq!(meant.0, meant.1);
            } else {
                prop_assert_eq!(last, before);
            }
        }
    }
}
