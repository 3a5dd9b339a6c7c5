//! Where is a program that was built with crash points, and how is it killed just there?

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal};

const UNPOISONED: &str = "nothing panics with the lock held";

/// What the crash points of a program connect to.
#[derive(Debug)]
pub(crate) struct Points {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Every point that was reached, in order.
    reached: Vec<String>,
    /// At which further point the program is killed.
    countdown: Option<usize>,
}

impl Points {
    /// Listens at a path.
    pub(crate) fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket can be made");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // Both end with the check.
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&connection, &shared));
            }
        });
        Self {
            path: path.to_owned(),
            state,
        }
    }

    /// The variable that leads a program here.
    pub(crate) fn variable(&self) -> (String, String) {
        let path = self.path.to_str().expect("our paths are ASCII").to_owned();
        ("STEPPE_POINTS".to_owned(), path)
    }

    /// From now on counts anew, and kills the program at this point, from 0; `None`: at none.
    pub(crate) fn arm(&self, countdown: Option<usize>) {
        let mut state = self.state.lock().expect(UNPOISONED);
        state.reached.clear();
        state.countdown = countdown;
    }

    /// What was reached since.
    pub(crate) fn reached(&self) -> Vec<String> {
        self.state.lock().expect(UNPOISONED).reached.clone()
    }

    /// Whether the program was killed since.
    pub(crate) fn killed(&self) -> bool {
        let state = self.state.lock().expect(UNPOISONED);
        state.countdown.is_some_and(|limit| state.reached.len() > limit)
    }
}

/// A point says its name, what it is about, and the process; and goes on when the connection ends.
fn serve(connection: &UnixStream, state: &Mutex<State>) {
    let mut line = String::new();
    if BufReader::new(connection).read_line(&mut line).is_err() {
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let (Some(point), Some(pid)) = (words.first(), words.last()) else {
        return;
    };
    let mut state = state.lock().expect(UNPOISONED);
    let number = state.reached.len();
    if state.countdown.is_some_and(|limit| number > limit) {
        // It is dead already, and says no more.
        return;
    }
    state.reached.push((*point).to_owned());
    if state.countdown == Some(number) {
        let pid = pid.parse().ok().and_then(Pid::from_raw);
        let pid = pid.expect("a point says which process it is in");
        rustix::process::kill_process(pid, Signal::KILL).expect("the process waits for an answer");
    }
}
