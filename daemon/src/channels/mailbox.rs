//! The queue in front of a shard thread.
//!
//! Putting something in never waits. What bounds it stands with each sender: a connection has byte credits that come
//! back once a message was handled, a channel takes so many orders and refuses the next, the chain feed waits for the
//! block before, the wallet answers one request each. What the journal says overtakes everything else: it
//! lets go what others wait for. There is no cycle, since the shard waits for nothing but this queue.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use millrace_journal::{Flush, Wake};

const LOCK: &str = "nothing panics while a mailbox is locked";

/// What a shard finds in its mailbox.
#[derive(Debug)]
pub(crate) struct Mail<T> {
    /// Flushes that have returned, in order.
    pub(crate) flushes: VecDeque<Flush>,
    /// Inputs, in order.
    pub(crate) inputs: VecDeque<T>,
}

impl<T> Default for Mail<T> {
    fn default() -> Self {
        Self { flushes: VecDeque::new(), inputs: VecDeque::new() }
    }
}

impl<T> Mail<T> {
    fn is_empty(&self) -> bool {
        self.flushes.is_empty() && self.inputs.is_empty()
    }
}

/// One shard's mailbox; clones are the same one.
#[derive(Debug)]
pub(crate) struct Mailbox<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    mail: Mutex<Mail<T>>,
    arrived: Condvar,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { mail: Mutex::new(Mail::default()), arrived: Condvar::new() }))
    }

    /// Puts an input in.
    pub(crate) fn put(&self, input: T) {
        let mut mail = self.lock();
        let was_empty = mail.is_empty();
        mail.inputs.push_back(input);
        drop(mail);
        if was_empty {
            self.0.arrived.notify_one();
        }
    }

    fn put_flush(&self, flush: Flush) {
        let mut mail = self.lock();
        let was_empty = mail.is_empty();
        mail.flushes.push_back(flush);
        drop(mail);
        if was_empty {
            self.0.arrived.notify_one();
        }
    }

    /// Takes all flushes, and inputs up to `inputs_max`, into `out`, which is empty. Waits for the first of them, but
    /// no longer than `patience`.
    pub(crate) fn take(&self, inputs_max: usize, patience: Option<Duration>, out: &mut Mail<T>) {
        let mut mail = self.lock();
        while mail.is_empty() {
            match patience {
                None => mail = self.0.arrived.wait(mail).expect(LOCK),
                Some(patience) => {
                    let (again, waited) = self.0.arrived.wait_timeout(mail, patience).expect(LOCK);
                    mail = again;
                    if waited.timed_out() {
                        break;
                    }
                }
            }
        }
        std::mem::swap(&mut mail.flushes, &mut out.flushes);
        if mail.inputs.len() <= inputs_max {
            std::mem::swap(&mut mail.inputs, &mut out.inputs);
        } else {
            out.inputs.extend(mail.inputs.drain(..inputs_max));
        }
    }

    /// Whether nothing has arrived, for those who do not wait.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Mail<T>> {
        self.0.mail.lock().expect(LOCK)
    }
}

impl<T: Send> Wake for Mailbox<T> {
    fn durable(&self, flush: &Flush) {
        self.put_flush(*flush);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_more_than_a_turn_may_have() {
        let mailbox = Mailbox::new();
        (0..5).for_each(|n| mailbox.put(n));
        let mut mail = Mail::default();
        mailbox.take(3, None, &mut mail);
        assert_eq!(mail.inputs, [0, 1, 2]);
        mail.inputs.clear();
        mailbox.take(3, None, &mut mail);
        assert_eq!(mail.inputs, [3, 4]);
    }

    #[test]
    fn take_from_an_empty_one_waits_no_longer_than_it_may() {
        let mailbox = Mailbox::<u8>::new();
        let mut mail = Mail::default();
        mailbox.take(3, Some(Duration::from_millis(1)), &mut mail);
        assert!(mail.inputs.is_empty() && mail.flushes.is_empty());
    }

    #[test]
    fn put_wakes_who_waits() {
        let mailbox = Mailbox::new();
        let other = mailbox.clone();
        let thread = std::thread::spawn(move || {
            let mut mail = Mail::default();
            other.take(1, None, &mut mail);
            mail.inputs
        });
        mailbox.put(7);
        assert_eq!(thread.join().ok(), Some(VecDeque::from([7])));
    }
}
