//! What is set up to be found, open to everybody but for what holds an inmate?

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use super::sockets;
use super::targets::{number, text};
use crate::machine::Error;
use crate::system::{self, Errno, call};

/// What is to be taken away again; it is entered as it is made.
#[derive(Debug, Default)]
struct Bait {
    files: Vec<PathBuf>,
    queue: Option<String>,
    segment: Option<i64>,
    semaphore: Option<i64>,
    messages: Option<i64>,
}

impl Bait {
    /// A place for a file, which nothing has yet.
    fn file(&mut self, path: PathBuf) -> &Path {
        self.files.push(path);
        self.files.last().map_or(Path::new(""), PathBuf::as_path)
    }
}

/// Says which call failed.
fn made<T>(what: &str, result: Result<T, Errno>) -> Result<T, Error> {
    result.map_err(|error| format!("{what}: {error}").into())
}

/// Lets everybody use a file.
fn open_to_all(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o777))
}

/// Sets it up, says on one line by which words it is found, and takes it away when standard input ends.
pub(crate) fn bait(folder: &Path) -> Result<(), Error> {
    // An interrupted test ends the input as well, and there is something to be taken away.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        system::ignore(signal);
    }
    let name = format!("steppe-inmate-{}", std::process::id());
    let mut bait = Bait::default();
    let mut words = String::new();
    let mut say =
        |word: &str, value: &dyn fmt::Display| words.push_str(&format!("inmate.bait.{word}={value} "));

    let path = bait.file(folder.join("bait.sock"));
    let _streams = UnixListener::bind(path)?;
    open_to_all(path)?;
    say("socket", &path.display());
    let path = bait.file(folder.join("bait.datagram"));
    let _letters = UnixDatagram::bind(path)?;
    open_to_all(path)?;
    say("datagram", &path.display());
    let path = bait.file(folder.join("bait.image"));
    File::create(path)?.write_all(b"a kernel, one might think")?;
    say("image", &path.display());
    let path = bait.file(folder.join("bait.disk"));
    File::create(path)?.write_all(&[b'.'; 4096])?;
    say("disk", &path.display());
    let path = bait.file(Path::new("/dev/shm").join(&name));
    let _shared = File::create(path)?;
    open_to_all(path)?;
    say("file", &path.display());

    let _nameless = made(
        "abstract socket",
        sockets::abstract_socket(&name, libc::SOCK_STREAM),
    )?;
    let datagram = format!("{name}-datagram");
    let _nameless_letters = made(
        "abstract socket",
        sockets::abstract_socket(&datagram, libc::SOCK_DGRAM),
    )?;
    say("abstract", &name);
    let loopback = TcpListener::bind(("127.0.0.1", 0))?;
    say("port", &loopback.local_addr()?.port());

    let queue = made("mq_open", sockets::make_queue(&text(&name)))?;
    bait.queue = Some(name.clone());
    // The mode that it was made with is subject to the umask.
    let _opened = made("fchmod", call!(SYS_fchmod, number(&queue), 0o666))?;
    say("queue", &name);
    // System V's keys are numbers that nobody else should have.
    let key = 0x5354_0000 + i64::from(std::process::id() & 0xffff);
    let mode = libc::IPC_CREAT | libc::IPC_EXCL | 0o666;
    bait.segment = Some(made("shmget", call!(SYS_shmget, key, 4096, mode))?);
    bait.semaphore = Some(made("semget", call!(SYS_semget, key, 1, mode))?);
    bait.messages = Some(made("msgget", call!(SYS_msgget, key, mode))?);
    ["shm", "sem", "msg"].iter().for_each(|word| say(word, &key));

    writeln!(std::io::stdout(), "{}", words.trim_end())?;
    std::io::stdout().flush()?;
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

impl Drop for Bait {
    fn drop(&mut self) {
        for file in &self.files {
            drop(std::fs::remove_file(file));
        }
        if let Some(queue) = &self.queue {
            let _removed = call!(SYS_mq_unlink, text(queue).as_c_str());
        }
        if let Some(id) = self.segment {
            let _removed = call!(SYS_shmctl, id, libc::IPC_RMID, 0);
        }
        if let Some(id) = self.semaphore {
            let _removed = call!(SYS_semctl, id, 0, libc::IPC_RMID, 0);
        }
        if let Some(id) = self.messages {
            let _removed = call!(SYS_msgctl, id, libc::IPC_RMID, 0);
        }
    }
}
