//! The ways in which an upstream is made to fail.

use std::{
    fmt,
    io::Write as _,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};

use super::{
    answer::{Answer, Cut, Gate},
    request::Request,
};

/// One way to fail.
#[derive(Clone, Debug)]
pub enum Fault {
    /// One bit in the middle of the body is wrong.
    WrongBytes,
    /// Only so many bytes, and a `Content-Length` that agrees with them.
    Short(u64),
    /// A web page with status 200, as captive portals and broken proxies send.
    Html,
    /// Another body under the same header, such as a valid manifest that was not asked for.
    Swapped(Vec<u8>),
    /// Closes the connection after so many body bytes.
    Close(u64),
    /// Resets the connection after so many body bytes.
    Reset(u64),
    /// Compresses the body and says so.
    Encoded(Encoding),
    /// Another status with a plain-text body, and perhaps a `Retry-After`.
    Status(u16, Option<u32>),
    /// Accepts the request and never answers.
    Hang,
    /// So many bytes per second.
    Rate(u64),
    /// Sends the first bytes, then waits for the gate.
    Gate(Gate),
    /// 307 to this address.
    Redirect(String),
    /// No `Docker-Content-Digest`.
    NoDigest,
    /// Answers a `Range` with 200 and everything.
    IgnoreRange,
    /// 401 with this `WWW-Authenticate`.
    Challenge(String),
}

/// A content encoding.
#[derive(Clone, Copy, Debug)]
pub enum Encoding {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Which requests a fault meets.
#[derive(Clone, Debug, Default)]
pub struct Target {
    host: Option<String>,
    method: Option<&'static str>,
    fragment: String,
}

impl Target {
    /// Requests whose path contains this text: a digest, a tag, `/manifests/`.
    pub fn path(fragment: impl Into<String>) -> Self {
        Self { fragment: fragment.into(), ..Self::default() }
    }

    /// Only at the site with this host name.
    #[must_use]
    pub fn at(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// Only with this method.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    fn meets(&self, request: &Request) -> bool {
        self.host.as_ref().is_none_or(|host| *host == request.host)
            && self.method.is_none_or(|method| method == request.method)
            && request.path.contains(&self.fragment)
    }
}

type Chooser = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// The faults that are set.
#[derive(Default)]
pub struct Faults {
    last: AtomicU64,
    rules: Mutex<Vec<Rule>>,
    chooser: Mutex<Option<Chooser>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Faults").field(&*self.lock()).finish()
    }
}

#[derive(Debug)]
struct Rule {
    number: u64,
    target: Target,
    fault: Fault,
    left: Option<usize>,
}

/// The faults that meet one request.
#[derive(Debug, Default)]
pub struct Taken {
    faults: Vec<(Option<u64>, Fault)>,
}

impl Faults {
    /// Fails every such request until [`Self::clear`].
    pub fn set(&self, target: Target, fault: Fault) {
        self.add(target, fault, None);
    }

    /// Fails the next `times` such requests.
    pub fn set_times(&self, times: usize, target: Target, fault: Fault) {
        self.add(target, fault, Some(times));
    }

    /// Lets a function choose a fault for each request that reaches a registry.
    pub fn choose(&self, chooser: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        *self.chooser() = Some(Box::new(chooser));
    }

    /// The upstream is repaired.
    pub fn clear(&self) {
        self.lock().clear();
        *self.chooser() = None;
    }

    /// Repairs what was set for paths with this text; other rules, and a chooser, stay.
    pub fn clear_path(&self, fragment: &str) {
        self.lock().retain(|rule| !rule.target.fragment.contains(fragment));
    }

    /// The faults that meet this request, taken off their count.
    pub fn take(&self, request: &Request) -> Taken {
        let mut faults = Vec::new();
        for rule in self.lock().iter_mut() {
            if rule.left == Some(0) || !rule.target.meets(request) {
                continue;
            }
            rule.left = rule.left.map(|left| left - 1);
            faults.push((Some(rule.number), rule.fault.clone()));
        }
        if let Some(fault) = self.chooser().as_mut().and_then(|choose| choose(request)) {
            faults.push((None, fault));
        }
        Taken { faults }
    }

    /// Spoils an answer. One that refuses the caller (401) is spoilt only by a challenge; the others then
    /// wait for the request that comes with credentials.
    pub async fn apply(&self, taken: Taken, request: &Request, answer: Answer) -> Result<Answer> {
        let refused = answer.status == 401;
        let mut answer = answer;
        for (rule, fault) in taken.faults {
            if refused && !matches!(fault, Fault::Challenge(_)) {
                self.give_back(rule);
                continue;
            }
            answer = fault.spoil(request, answer).await?;
        }
        Ok(answer)
    }

    fn add(&self, target: Target, fault: Fault, left: Option<usize>) {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.lock().push(Rule { number, target, fault, left });
    }

    fn give_back(&self, number: Option<u64>) {
        let mut rules = self.lock();
        if let Some(rule) = rules.iter_mut().find(|rule| Some(rule.number) == number) {
            rule.left = rule.left.map(|left| left + 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chooser(&self) -> MutexGuard<'_, Option<Chooser>> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Whether one of them makes the upstream ignore `Range`.
    #[must_use]
    pub fn ignores_range(&self) -> bool {
        self.faults.iter().any(|(_, fault)| matches!(fault, Fault::IgnoreRange))
    }
}

impl Fault {
    async fn spoil(self, request: &Request, mut answer: Answer) -> Result<Answer> {
        match self {
            Self::WrongBytes => answer.map_body(flip_middle).await?,
            Self::Short(length) => answer.map_body(|body| shortened(body, length)).await?,
            Self::Html => answer = Answer::text(200, "text/html", "<html><body>Please log in.</body></html>"),
            Self::Swapped(body) => answer.map_body(|_| body).await?,
            Self::Close(after) => answer.delivery.cut = Some(Cut::Close(after)),
            Self::Reset(after) => answer.delivery.cut = Some(Cut::Reset(after)),
            Self::Encoded(encoding) => answer = encoded(encoding, answer).await?,
            Self::Status(status, retry_after) => answer = status_page(status, retry_after),
            Self::Hang => answer.delivery.hang = true,
            Self::Rate(rate) => answer.delivery.rate = Some(rate),
            Self::Gate(gate) => answer.delivery.gate = Some(gate),
            Self::Redirect(location) => {
                let location = location.replace("{path}", &request.path);
                answer = Answer::text(307, "text/plain", "").with("Location", location);
            }
            Self::NoDigest => answer.remove("Docker-Content-Digest"),
            Self::IgnoreRange => {}
            Self::Challenge(challenge) => {
                answer = Answer::text(401, "application/json", "{}").with("WWW-Authenticate", challenge);
            }
        }
        Ok(answer)
    }
}

fn status_page(status: u16, retry_after: Option<u32>) -> Answer {
    let answer = Answer::text(status, "text/plain", format!("upstream says {status}\n"));
    match retry_after {
        Some(seconds) => answer.with("Retry-After", seconds.to_string()),
        None => answer,
    }
}

fn flip_middle(mut body: Vec<u8>) -> Vec<u8> {
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 1;
    }
    body
}

fn shortened(mut body: Vec<u8>, length: u64) -> Vec<u8> {
    body.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    body
}

async fn encoded(encoding: Encoding, mut answer: Answer) -> Result<Answer> {
    // An encoded part of a blob could not be put together: servers encode whole answers only.
    let mut failed = None;
    let name = match encoding {
        Encoding::Gzip => "gzip",
        Encoding::Zstd => "zstd",
    };
    answer
        .map_body(|body| match encoding {
            Encoding::Gzip => gzip(&body).unwrap_or_else(|error| {
                failed = Some(error);
                body
            }),
            Encoding::Zstd => zstd(&body),
        })
        .await?;
    match failed {
        Some(error) => Err(error),
        None => Ok(answer.with("Content-Encoding", name)),
    }
}

fn gzip(body: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(body).context("failed to compress")?;
    encoder.finish().context("failed to compress")
}

/// A zstd frame of raw blocks (RFC 8878): valid, and no library is needed to write it.
fn zstd(body: &[u8]) -> Vec<u8> {
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    const WINDOW_128_KIB: u8 = 7 << 3;
    const LARGEST_BLOCK: usize = 128 * 1024;
    let mut frame = MAGIC.to_vec();
    frame.extend([0, WINDOW_128_KIB]);
    let blocks = body.chunks(LARGEST_BLOCK).count();
    if blocks == 0 {
        frame.extend([1, 0, 0]);
    }
    for (number, block) in body.chunks(LARGEST_BLOCK).enumerate() {
        let is_last = u32::from(number + 1 == blocks);
        let size = u32::try_from(block.len()).unwrap_or(u32::MAX);
        frame.extend_from_slice(&(size << 3 | is_last).to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}
