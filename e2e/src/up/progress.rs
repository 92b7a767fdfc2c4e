//! How far the cluster is: lines for everyone who asks, from the first on, and the end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// How often a long step says that it is not stuck.
const SAY: Duration = Duration::from_secs(15);

/// What one who asks is told, one a line, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// To be shown.
    Line(String),
    /// Everything is up. Nothing follows.
    Done,
    /// A step failed. Nothing follows; who asks anew makes it go on.
    Failed,
}

/// The record of what was told since the last failure.
#[derive(Debug)]
pub struct Progress {
    told: Mutex<Vec<Message>>,
    /// Changes with every message.
    changed: watch::Sender<()>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { told: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Progress {
    /// Takes a step and tells of its begin, its length and its end.
    pub async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let begun = Instant::now();
        self.tell(Message::Line(format!("==> {name}")));
        tokio::pin!(work);
        let mut say = tokio::time::interval_at(tokio::time::Instant::now() + SAY, SAY);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = say.tick() => self.tell(Message::Line(format!("    {} s so far", begun.elapsed().as_secs()))),
            }
        };
        self.tell(Message::Line(format!("<== {name}: {:.1} s", begun.elapsed().as_secs_f64())));
        result.with_context(|| format!("failed: {name}"))
    }

    /// Tells one thing to all who ask now or later.
    pub fn tell(&self, message: Message) {
        self.with(|told| told.push(message));
        self.changed.send_replace(());
    }

    /// Waits until somebody asks after a failure; then the record begins anew.
    pub async fn asked_again(&self) {
        let mut changed = self.changed.subscribe();
        while !self.with(|told| told.is_empty()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells all who connect, for as long as it is polled.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) -> Result<()> {
        loop {
            let (stream, _) = listener.accept().await.context("cannot accept who asks for the progress")?;
            if self.with(|told| told.last() == Some(&Message::Failed)) {
                self.with(Vec::clear);
                self.changed.send_replace(());
            }
            let progress = Arc::clone(&self);
            // One who stops listening ends only this.
            tokio::spawn(async move { progress.tell_all(stream).await });
        }
    }

    async fn tell_all(&self, mut stream: UnixStream) -> Result<()> {
        let mut changed = self.changed.subscribe();
        for index in 0.. {
            let message = loop {
                if let Some(message) = self.with(|told| told.get(index).cloned()) {
                    break message;
                }
                changed.changed().await?;
            };
            stream.write_all(format!("{}\n", serde_json::to_string(&message)?).as_bytes()).await?;
            if message == Message::Done || message == Message::Failed {
                break;
            }
        }
        Ok(())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<Message>) -> T) -> T {
        act(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;

    async fn ask(path: &std::path::Path) -> Vec<Message> {
        let mut lines = BufReader::new(UnixStream::connect(path).await.expect("it listens")).lines();
        let mut messages = Vec::new();
        while let Some(line) = lines.next_line().await.expect("it tells") {
            messages.push(serde_json::from_str(&line).expect("it tells in JSON"));
        }
        messages
    }

    #[tokio::test]
    async fn everyone_is_told_from_the_first_line_and_the_next_after_a_failure_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("progress.sock");
        let progress = Arc::new(Progress::default());
        let serving = tokio::spawn(Arc::clone(&progress).serve(UnixListener::bind(&path).expect("a socket")));

        progress.tell(Message::Line("one".to_owned()));
        progress.tell(Message::Failed);
        let again = {
            let progress = Arc::clone(&progress);
            tokio::spawn(async move {
                progress.asked_again().await;
                progress.tell(Message::Line("two".to_owned()));
                progress.tell(Message::Done);
            })
        };
        let expected = vec![Message::Line("two".to_owned()), Message::Done];
        assert_eq!(ask(&path).await, expected);
        assert_eq!(ask(&path).await, expected);
        again.await.expect("it went on");
        serving.abort();
    }
}
