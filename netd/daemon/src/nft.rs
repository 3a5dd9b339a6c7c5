//! How is text of nftables given to the kernel, and read back?
//!
//! By libnftables, loaded when netd starts: in process a transaction costs a thirtieth of starting `nft`. Its version is the
//! host's, and only the functions that every version has are called.

#![expect(unsafe_code, reason = "libnftables is a library of C")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libloading::Library;

/// By this name every libnftables since 0.9 is found.
const LIBRARY: &str = "libnftables.so.1";
const NFT_CTX_DEFAULT: u32 = 0;
const NFT_CTX_OUTPUT_JSON: c_uint = 1 << 4;

/// Why nftables did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The library can't be used.
    #[error("{LIBRARY} can't be loaded: install the package that has it (libnftables1 on Debian)")]
    Library(#[from] libloading::Error),
    /// It gives no context.
    #[error("{LIBRARY} gives no context")]
    Context,
    /// It refuses.
    #[error("nftables refuses: {0}")]
    Refused(String),
}

type Context = *mut c_void;

/// For a longer text the library takes so much memory that it is given back afterwards.
const LONG: usize = 64 * 1024;

/// A context of libnftables, in the network namespace of the thread that made it.
pub struct Nft {
    context: Context,
    json: bool,
    run: unsafe extern "C" fn(Context, *const c_char) -> c_int,
    output: unsafe extern "C" fn(Context) -> *const c_char,
    error: unsafe extern "C" fn(Context) -> *const c_char,
    free: unsafe extern "C" fn(Context),
    /// Last: what stands above points into it.
    _library: Library,
}

impl std::fmt::Debug for Nft {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Nft").finish_non_exhaustive()
    }
}

// SAFETY: a context has no tie to a thread, and `&mut self` lets only one use it at a time.
unsafe impl Send for Nft {}

impl Nft {
    /// A context whose output is text, or JSON.
    ///
    /// # Errors
    ///
    /// Without the library.
    pub fn open(json: bool) -> Result<Self, NftError> {
        // SAFETY: the signatures are those of nftables/libnftables.h, which has not changed them since 0.9; the pointers live
        // no longer than the library, which is kept beside them.
        unsafe {
            let library = Library::new(LIBRARY)?;
            let new = library.get::<unsafe extern "C" fn(u32) -> Context>(b"nft_ctx_new\0")?;
            let free = *library.get::<unsafe extern "C" fn(Context)>(b"nft_ctx_free\0")?;
            let run = *library
                .get::<unsafe extern "C" fn(Context, *const c_char) -> c_int>(b"nft_run_cmd_from_buffer\0")?;
            let output = *library
                .get::<unsafe extern "C" fn(Context) -> *const c_char>(b"nft_ctx_get_output_buffer\0")?;
            let error = *library
                .get::<unsafe extern "C" fn(Context) -> *const c_char>(b"nft_ctx_get_error_buffer\0")?;
            let buffer_output =
                *library.get::<unsafe extern "C" fn(Context) -> c_int>(b"nft_ctx_buffer_output\0")?;
            let buffer_error =
                *library.get::<unsafe extern "C" fn(Context) -> c_int>(b"nft_ctx_buffer_error\0")?;
            let set_flags =
                *library.get::<unsafe extern "C" fn(Context, c_uint)>(b"nft_ctx_output_set_flags\0")?;
            let context = new(NFT_CTX_DEFAULT);
            if context.is_null() {
                return Err(NftError::Context);
            }
            let nft = Self {
                context,
                json,
                run,
                output,
                error,
                free,
                _library: library,
            };
            if buffer_output(context) != 0 || buffer_error(context) != 0 {
                return Err(NftError::Context);
            }
            if json {
                set_flags(context, NFT_CTX_OUTPUT_JSON);
            }
            Ok(nft)
        }
    }

    /// Does what the text says in one transaction, or nothing of it; gives what it prints.
    ///
    /// # Errors
    ///
    /// With nftables' own words.
    pub fn run(&mut self, text: &str) -> Result<String, NftError> {
        let Ok(buffer) = CString::new(text) else {
            return Err(NftError::Refused("the text contains a NUL".to_owned()));
        };
        // SAFETY: the context lives until `self` is dropped, and the text ends in NUL.
        let code = unsafe { (self.run)(self.context, buffer.as_ptr()) };
        // Both are read each time: that empties them.
        // SAFETY: the buffers belong to the context, end in NUL, and stay until the next call.
        let (output, error) = unsafe {
            (
                words((self.output)(self.context)),
                words((self.error)(self.context)),
            )
        };
        if text.len() > LONG {
            // What was done is done, whether memory comes back or not.
            let _given = self.forget();
        }
        if code == 0 {
            Ok(output)
        } else {
            Err(NftError::Refused(in_one_line(&error)))
        }
    }

    /// Gives back the memory that the library took for what it learned of the tables, and that glibc keeps for later.
    ///
    /// # Errors
    ///
    /// There is no other context to be had; the old one stays.
    pub(crate) fn forget(&mut self) -> Result<(), NftError> {
        *self = Self::open(self.json)?;
        give_back();
        Ok(())
    }
}

/// Gives memory that is free back to the system.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call without conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Drop for Nft {
    fn drop(&mut self) {
        // SAFETY: nobody else has the context, and the library is still loaded.
        unsafe { (self.free)(self.context) };
    }
}

/// # Safety
///
/// The pointer is null, or leads to text that ends in NUL.
unsafe fn words(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// nftables' words with neither line ends nor the marks below what it quotes.
fn in_one_line(words: &str) -> String {
    let lines = words.lines().map(str::trim);
    let told =
        lines.filter(|line| !line.is_empty() && !line.bytes().all(|byte| byte == b'^' || byte == b'~'));
    let line = told.collect::<Vec<_>>().join("; ");
    if line.is_empty() {
        "without a word".to_owned()
    } else {
        line.chars().take(500).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::in_one_line;

    #[test]
    fn words_become_one_line() {
        let words = "/dev/stdin:1:5-9: Error: syntax error\nadd tible x\n    ^^^^^\n";
        assert_eq!(
            in_one_line(words),
            "/dev/stdin:1:5-9: Error: syntax error; add tible x"
        );
        assert_eq!(in_one_line("\n"), "without a word");
        assert_eq!(in_one_line(&"x".repeat(9000)).len(), 500);
    }
}
