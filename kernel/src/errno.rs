//! Error numbers of the Linux ABI, as system calls return them.

use linux_raw_sys::errno as e;

/// A Linux error number: 1..4096, or one of the two internal codes that never reach a program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What a system call returns: a value, or the error whose negative the program sees.
pub type SysResult = Result<usize, Errno>;

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("Linux's `", stringify!($name), "`.")]
                pub const $name: Errno = Errno(e::$name as i32);
            )*
        }
        impl core::fmt::Debug for Errno {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {
                    $(Errno::$name => f.write_str(stringify!($name)),)*
                    Errno(n) => write!(f, "errno {n}"),
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST
    EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM
    ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA ETIME EOVERFLOW EILSEQ ENOTSOCK EOPNOTSUPP
    EAFNOSUPPORT ENOTCONN ETIMEDOUT ECONNREFUSED EALREADY EINPROGRESS ECANCELED EOWNERDEAD ENOTRECOVERABLE EUSERS
    ELIBBAD EADDRINUSE EISCONN EPROTOTYPE ECONNRESET EMSGSIZE EPROTONOSUPPORT ESOCKTNOSUPPORT ENOPROTOOPT ETOOMANYREFS ENOBUFS
    EHWPOISON
}

impl Errno {
    /// Interrupted by a signal: run the call again, unless a handler without SA_RESTART runs, which sees EINTR.
    /// Linux's internal ERESTARTSYS.
    pub const RESTART: Errno = Errno(512);
    /// Interrupted by a signal: run the call again only if no handler runs, else EINTR. Linux's ERESTARTNOHAND.
    pub const RESTART_NO_HANDLER: Errno = Errno(514);

    /// The value in the result register: -1 .. -4095.
    pub fn as_return(self) -> u64 {
        -(self.0 as i64) as u64
    }
}
