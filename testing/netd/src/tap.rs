//! How does a guest's side of a tap device send and receive?

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::space::Space;
use crate::system;
use crate::wait::PATIENCE;

/// Bytes before each frame, which say how to finish it (struct virtio_net_hdr); zeros: it is finished.
pub(crate) const HEADER: usize = 10;

/// Longest frame: a whole one that the kernel did not split, and its header.
const FRAME_MAX: usize = 65_536 + 64;

/// A tap device that is held open.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    file: File,
}

impl Tap {
    /// Opens it by name as this user, as the shim does; in a namespace without one of the name it is made.
    pub(crate) fn open(space: &Space, name: &str, uid: u32, multi_queue: bool) -> io::Result<Self> {
        let file = space.enter(|| {
            // The user matters to TUNSETIFF; whoever may open the file is udev's matter.
            let tun = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            if uid != 0 {
                system::become_user(uid)?;
            }
            system::attach_tap(&tun, name, multi_queue)?;
            Ok::<_, io::Error>(tun)
        })?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Sends a frame.
    #[track_caller]
    pub(crate) fn send(&self, frame: &[u8]) {
        let mut whole = vec![0; HEADER];
        whole.extend_from_slice(frame);
        self.pass(&whole)
            .unwrap_or_else(|error| panic!("a frame of {} bytes into {}: {error}", frame.len(), self.name));
    }

    /// Passes on what another tap's [`Self::take`] gave.
    pub(crate) fn pass(&self, whole: &[u8]) -> io::Result<()> {
        (&self.file).write_all(whole)
    }

    /// The next frame with its header, if there is one.
    pub(crate) fn take(&self) -> io::Result<Vec<u8>> {
        let mut whole = vec![0; FRAME_MAX];
        let length = (&self.file).read(&mut whole)?;
        whole.truncate(length);
        Ok(whole)
    }

    /// What poll waits for.
    pub(crate) fn poll(&self) -> PollFd<'_> {
        PollFd::new(&self.file, PollFlags::IN)
    }

    /// The next frame, waited for until the deadline.
    fn next(&self, deadline: Instant) -> Option<Vec<u8>> {
        loop {
            match self.take() {
                Ok(whole) => return whole.get(HEADER..).map(<[u8]>::to_vec),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("reading {}: {error}", self.name),
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let left = Timespec::try_from(left).expect("a short time");
            rustix::event::poll(&mut [self.poll()], Some(&left)).expect("poll works");
        }
    }

    /// Every frame that arrives until one contains the mark, that one last.
    #[track_caller]
    pub(crate) fn receive_until(&self, mark: &[u8]) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        while let Some(frame) = self.next(deadline) {
            let last = contains(&frame, mark);
            frames.push(frame);
            if last {
                return frames;
            }
        }
        panic!(
            "{} got no frame with {:?} within {} s; it got {} others",
            self.name,
            String::from_utf8_lossy(mark),
            PATIENCE.as_secs(),
            frames.len()
        );
    }

    /// Forgets what has arrived.
    pub(crate) fn forget(&self) {
        while self.next(Instant::now()).is_some() {}
    }
}

/// Whether a frame contains these bytes.
pub(crate) fn contains(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|window| window == mark)
}
