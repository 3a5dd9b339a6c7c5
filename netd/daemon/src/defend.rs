//! Who says that an address is taken while the guest that has it still boots?
//!
//! A host that asks for an address hears nothing from a guest that can't answer yet, and would give the address a second time.
//! For the first while netd answers in its place (RFC 5227, 2.4), only those who ask as another netd does, and as the kernel
//! does before it takes an address: without one of their own.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netd_plan::{LinkName, Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::packet::{FRAME_MAX, Packet};
use crate::probe::{Place, Question, reply};

/// So long after its attachment. A guest that boots from a slow disk takes tens of seconds.
const WHILE: Duration = Duration::from_secs(60);
/// How long an answer waits at most for a place that is new; others wait 300 ms and more for it.
const LOOK: Duration = Duration::from_millis(100);

/// A machine whose guest may not answer yet.
#[derive(Debug)]
struct Machine {
    mac: Mac,
    question: Question,
    until: Instant,
}

type Key = (u32, Option<u16>);

#[derive(Debug, Default)]
struct Shared {
    machines: BTreeMap<LinkName, Machine>,
    sockets: BTreeMap<Key, (Place, Arc<Packet>)>,
}

/// Answers for machines on a thread of its own.
#[derive(Debug)]
pub(crate) struct Defender(Arc<(Mutex<Shared>, Condvar)>);

impl Defender {
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::new((Mutex::default(), Condvar::new()));
        let own = Arc::clone(&shared);
        let builder = thread::Builder::new().name("defend".to_owned());
        builder.spawn(move || {
            loop {
                answer(&own);
            }
        })?;
        Ok(Self(shared))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0.0)
    }

    /// From now on, until its while is over or it is dropped.
    pub(crate) fn add(&self, tap: LinkName, mac: Mac, question: Question) {
        let mut shared = self.shared();
        for place in &question.places {
            let key = (place.index, place.tag);
            if shared.sockets.contains_key(&key) {
                continue;
            }
            match Packet::open(place.index, place.tag) {
                Ok(socket) => drop(shared.sockets.insert(key, (place.clone(), Arc::new(socket)))),
                // The probe before could do without as well.
                Err(error) => tracing::debug!(%error, "nobody answers for a new machine's addresses"),
            }
        }
        let until = Instant::now() + WHILE;
        shared.machines.insert(tap, Machine { mac, question, until });
        self.0.1.notify_one();
    }

    /// No longer; when this returns, nothing is said for it any more.
    pub(crate) fn remove(&self, tap: &LinkName) {
        self.shared().machines.remove(tap);
    }
}

/// Nothing that is half done under the lock matters.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One round: waits for machines, then for questions.
fn answer((shared, changed): &(Mutex<Shared>, Condvar)) {
    let mut held = lock(shared);
    let now = Instant::now();
    held.machines.retain(|_, machine| machine.until > now);
    if held.machines.is_empty() {
        held.sockets.clear();
        // An early end is a round more.
        let _held = changed.wait(held);
        return;
    }
    let sockets: Vec<(Place, Arc<Packet>)> = held.sockets.values().cloned().collect();
    drop(held);
    let mut ready: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|(_, socket)| PollFd::new(&**socket, PollFlags::IN))
        .collect();
    let timeout = Timespec::try_from(LOOK).ok();
    let heard = poll(&mut ready, timeout.as_ref());
    if !matches!(heard, Ok(1..)) {
        if heard.is_err() || sockets.is_empty() {
            thread::sleep(LOOK);
        }
        return;
    }
    let ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
    for ((place, socket), _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
        let mut room = [0; FRAME_MAX];
        match socket.receive(&mut room) {
            Ok(Some(frame)) => {
                let held = lock(shared);
                let machines = held.machines.values();
                let said = machines
                    .filter(|machine| machine.question.places.contains(place))
                    .find_map(|machine| reply(&machine.question, machine.mac, place, frame));
                // Under the lock: of a machine that is gone nothing is said. A frame that is lost is asked for again.
                let _sent = said.map(|frame| socket.send(&frame));
            }
            Ok(None) => {}
            // The link is gone or down: others may be there.
            Err(_) => drop(lock(shared).sockets.remove(&(place.index, place.tag))),
        }
    }
}
