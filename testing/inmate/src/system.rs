//! How are system calls made that the standard library has no name for?
//!
//! Arguments are borrowed while the call lasts, so what the kernel reads or writes is there. Calls that would change this
//! program's own memory beside that (mmap, brk, clone with shared memory) are not made by [`by_number`].

#![expect(unsafe_code, reason = "raw system calls are what this program is for")]

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// An error number of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

/// One argument of a system call.
#[derive(Debug)]
pub(crate) enum Argument<'a> {
    Number(i64),
    Text(&'a CStr),
    Bytes(&'a [u8]),
    Room(&'a mut [u8]),
}

macro_rules! numbers {
    ($($kind:ty),*) => { $(impl From<$kind> for Argument<'_> {
        fn from(number: $kind) -> Self {
            Self::Number(i64::from(number))
        }
    })* };
}
numbers!(i32, u32, i64, u8);

impl From<u64> for Argument<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number.cast_signed())
    }
}

impl From<usize> for Argument<'_> {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

impl<'a> From<&'a CStr> for Argument<'a> {
    fn from(text: &'a CStr) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Argument<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Argument<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Argument<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Argument<'a> {
    fn from(room: &'a mut [u8]) -> Self {
        Self::Room(room)
    }
}

impl<'a, const N: usize> From<&'a mut [u8; N]> for Argument<'a> {
    fn from(room: &'a mut [u8; N]) -> Self {
        Self::Room(room)
    }
}

/// Makes a system call by its name: `call!(SYS_mount, c"none", c"/tmp", c"tmpfs", 0, 0)`.
macro_rules! call {
    ($name:ident $(, $argument:expr)* $(,)?) => {
        $crate::system::by_number(libc::$name, &mut [$($crate::system::Argument::from($argument)),*])
    };
}
pub(crate) use call;

/// Makes a system call by its number.
pub(crate) fn by_number(number: libc::c_long, arguments: &mut [Argument<'_>]) -> Result<i64, Errno> {
    let mut raw = [0_i64; 6];
    for (place, argument) in raw.iter_mut().zip(arguments) {
        *place = match argument {
            Argument::Number(number) => *number,
            Argument::Text(text) => text.as_ptr() as i64,
            Argument::Bytes(bytes) => bytes.as_ptr() as i64,
            Argument::Room(room) => room.as_mut_ptr() as i64,
        };
    }
    let [a, b, c, d, e, f] = raw;
    // SAFETY: pointers are to values that are borrowed until the call has returned.
    checked(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

fn checked(result: i64) -> Result<i64, Errno> {
    if result == -1 {
        return Err(Errno::last());
    }
    Ok(result)
}

/// Takes over a descriptor that a call made or that was inherited; nothing else may own it.
pub(crate) fn own(number: i64) -> Result<OwnedFd, Errno> {
    let number = RawFd::try_from(number).map_err(|_| Errno(libc::EBADF))?;
    // SAFETY: `fcntl` looks at the descriptor table only.
    checked(unsafe { libc::fcntl(number, libc::F_GETFD) }.into())?;
    // SAFETY: it is open, and the caller says that it is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The kernel's id of this thread.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: the call has no arguments and can't fail.
    unsafe { libc::gettid() }
}

/// Ignores a signal.
pub(crate) fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is a valid handler, and no other is replaced.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Forks. The child runs the function and ends with what it returns; it must not need another thread.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> Result<i32, Errno> {
    // SAFETY: the child goes on in a copy of this memory and of this thread alone; glibc keeps its own locks usable.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = child();
        // SAFETY: no destructor of the parent's is to be run twice.
        unsafe { libc::_exit(status.into()) }
    }
    checked(pid.into()).map(|_| pid)
}

/// fork(2) itself, which glibc's function is not: that makes another call.
pub(crate) fn fork_call() -> Result<(), Errno> {
    // SAFETY: the child ends at once.
    unsafe { ending_child(libc::syscall(libc::SYS_fork)) }
}

/// clone(2) without memory in common.
pub(crate) fn clone(flags: i32) -> Result<(), Errno> {
    // SAFETY: the child has a copy of this memory and stack, and ends at once.
    unsafe {
        ending_child(libc::syscall(
            libc::SYS_clone,
            i64::from(flags),
            0_i64,
            0_i64,
            0_i64,
            0_i64,
        ))
    }
}

/// clone3(2), for a process as fork(2) makes it.
pub(crate) fn clone3() -> Result<(), Errno> {
    // struct clone_args: flags, pidfd, two thread ids, the signal of its end, stack, its size, thread-local storage.
    let arguments = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    // SAFETY: the structure is read only; the child has a copy of this memory and stack, and ends at once.
    unsafe {
        ending_child(libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        ))
    }
}

/// Ends here if this is the child; waits for it if not.
///
/// # Safety
/// To be given what a call that makes a process has returned.
unsafe fn ending_child(result: i64) -> Result<(), Errno> {
    if result == 0 {
        // SAFETY: the child of a moment ago has nothing to clean up.
        unsafe { libc::_exit(0) }
    }
    let child = i32::try_from(checked(result)?).unwrap_or(-1);
    // Not every child is one to be waited for.
    let _status = wait(child);
    Ok(())
}

/// The answer of a call that was made without the C library, which would have set `errno`.
fn bare(result: i64) -> Result<i64, Errno> {
    match i32::try_from(-result) {
        Ok(error @ 1..=4095) => Err(Errno(error)),
        _ => Ok(result),
    }
}

/// vfork(2): the child has this memory and stack until it ends, so it does nothing but end.
pub(crate) fn vfork() -> Result<(), Errno> {
    let child: i64;
    // SAFETY: the child uses registers only, and the parent stands still meanwhile.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "2:",
            inout("rax") libc::SYS_vfork => child,
            out("rdi") _, out("rcx") _, out("r11") _,
        );
    }
    let child = bare(child)?;
    let _status = wait(i32::try_from(child).unwrap_or(-1));
    Ok(())
}

/// A call as 32-bit programs make it, which whoever looks at calls must see too. It must not need memory; a child ends.
pub(crate) fn by_old_gate(number: u32, argument: u32) -> Result<(), Errno> {
    let result: u64;
    // SAFETY: the call takes a number and touches no memory of ours; `rbx` is kept, because the compiler needs it.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {argument:e}",
            "int 0x80",
            "pop rbx",
            argument = in(reg) argument,
            inout("rax") u64::from(number) => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The answer has 32 bits.
    let answer = i64::from((result & 0xffff_ffff) as u32 as i32);
    if number == 2 {
        return match bare(answer) {
            // SAFETY: this is what fork has returned.
            Ok(answer) => unsafe { ending_child(answer) },
            Err(error) => Err(error),
        };
    }
    bare(answer).map(drop)
}

/// Waits for a child's end; its status as wait(2) gives it.
pub(crate) fn wait(pid: i32) -> Result<i32, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: the status is written to a live integer.
        match checked(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into()) {
            Ok(_) => return Ok(status),
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends a signal.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: two numbers.
    checked(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Sends SIGALRM to this process after so many seconds; 0: no more.
pub(crate) fn alarm(seconds: u32) {
    // SAFETY: a number.
    unsafe { libc::alarm(seconds) };
}

extern "C" fn wake(_signal: libc::c_int) {}

/// From now on the alarm does nothing but end a system call that waits.
pub(crate) fn interrupt_on_alarm() {
    let wake: extern "C" fn(libc::c_int) = wake;
    // SAFETY: the handler does nothing; without SA_RESTART the call that it interrupts fails.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
    }
}

/// From now on the alarm ends this process.
pub(crate) fn end_on_alarm() {
    // SAFETY: the default is a valid handler.
    unsafe { libc::signal(libc::SIGALRM, libc::SIG_DFL) };
}

/// Ends this process by a signal.
pub(crate) fn end_self(signal: i32) -> ! {
    // SAFETY: numbers; no destructor is to be run.
    unsafe {
        libc::raise(signal);
        libc::_exit(1)
    }
}

/// Sleeps until a signal ends this process.
pub(crate) fn sleep_for_good() -> ! {
    loop {
        // SAFETY: the call has no arguments.
        unsafe { libc::pause() };
    }
}

impl Errno {
    /// That of this thread's last call.
    pub(crate) fn last() -> Self {
        Self::from(std::io::Error::last_os_error())
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EINVAL))
    }
}

macro_rules! names {
    ($($name:ident)*) => {
        fn name(number: i32) -> Option<&'static str> {
            match number {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}
names! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG ENODATA ETIME EPROTO EBADMSG EOVERFLOW EUSERS ENOTSOCK
    EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT
    EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED
    EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ENOMEDIUM ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED
}

/// The name, as in errno(3).
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "E{}", self.0),
        }
    }
}
