//! Lines on their way out: gathered in memory, and written together by one thread.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// For how long lines are gathered: a busy server writes a hundred times in a second, however many lines there are.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes that may wait; whoever has more to say then waits too, so that none is lost and memory is bounded.
const MOST: usize = 4 * 1024 * 1024;

/// The end into which lines go.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

/// Writes what is under way when it is dropped.
pub struct Guard {
    shared: Arc<Shared>,
    writing: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There are lines, or it is over.
    filled: Condvar,
    /// They were taken.
    emptied: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    over: bool,
}

/// Begins to write to `out` what comes into the other end.
pub(super) fn begin(out: impl Write + Send + 'static) -> (Lines, Guard) {
    let shared = Arc::<Shared>::default();
    let writer = Arc::clone(&shared);
    let writing = thread::Builder::new().name("log".to_owned()).spawn(move || writer.write_all_to(out)).ok();
    if writing.is_none() {
        // Without the thread nothing would come out, and whoever has much to say would wait for ever.
        shared.lock().over = true;
    }
    (Lines(Arc::clone(&shared)), Guard { shared, writing })
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all_to(&self, mut out: impl Write) {
        let mut taken = Vec::new();
        loop {
            {
                let waiting = self.lock();
                let is_idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.over;
                let waiting = self.filled.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
                // Until it is over, or so much has come that somebody waits.
                let is_little = |waiting: &mut Waiting| waiting.bytes.len() < MOST && !waiting.over;
                let gathered = self.filled.wait_timeout_while(waiting, GATHER, is_little);
                let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
                mem::swap(&mut taken, &mut waiting.bytes);
                if taken.is_empty() && waiting.over {
                    return;
                }
            }
            self.emptied.notify_all();
            // There is no other place to say that the log cannot be written.
            let _ = out.write_all(&taken);
            taken.clear();
        }
    }

    fn add(&self, line: &[u8]) {
        let is_full = |waiting: &mut Waiting| waiting.bytes.len() >= MOST && !waiting.over;
        let mut waiting = self.emptied.wait_while(self.lock(), is_full).unwrap_or_else(PoisonError::into_inner);
        if waiting.over {
            // Nobody writes any more: the last words of a process that ends.
            let _ = io::stderr().write_all(line);
            return;
        }
        let before = waiting.bytes.len();
        waiting.bytes.extend_from_slice(line);
        let wake = before == 0 || waiting.bytes.len() >= MOST;
        drop(waiting);
        if wake {
            self.filled.notify_one();
        }
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.filled.notify_all();
        self.shared.emptied.notify_all();
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Out {
        fn seen(&self) -> (usize, Vec<u8>) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            seen.0 += 1;
            seen.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_comes_out_once_and_in_order_also_those_that_had_to_wait() {
        let out = Out::default();
        let (lines, guard) = begin(out.clone());
        let count = 3 * MOST / 100;
        for number in 0..count {
            lines.0.add(format!("{number:099}\n").as_bytes());
        }
        drop(guard);
        let (writes, bytes) = out.seen();
        assert!(writes < count / 10, "{writes} writes for {count} lines");
        let numbers = bytes.chunks(100).map(|line| std::str::from_utf8(line).ok()?.trim().parse().ok());
        assert!(numbers.eq((0..count).map(Some)));
    }

    #[test]
    fn a_single_line_comes_out_by_itself() {
        let out = Out::default();
        let (lines, _guard) = begin(out.clone());
        lines.0.add(b"alone\n");
        while out.seen().1.is_empty() {
            thread::yield_now();
        }
        assert_eq!(out.seen().1, b"alone\n");
    }
}
