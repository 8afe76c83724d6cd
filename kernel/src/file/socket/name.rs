//! What sockets are called: paths in the tree, names in a space of their own ("abstract"), or nothing.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};

use sync::SpinLock;

use super::{Socket, Style};
use crate::{
    errno::Errno,
    file::{
        Follow, Result, directory,
        inode::{Inode, Kind, Volume},
    },
    task,
};

/// `AF_UNIX`.
pub const AF_UNIX: u16 = 1;
/// Bytes of `sun_path`.
const PATH_BYTES: usize = 108;
/// Bytes of `sun_family`.
const FAMILY_BYTES: usize = 2;

/// The name of a socket.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Address {
    /// It has none.
    #[default]
    Unnamed,
    /// As it was given to `bind`.
    Path(Vec<u8>),
    /// Without the NUL that it begins with in a `sockaddr_un`.
    Abstract(Vec<u8>),
}

type AbstractNames = BTreeMap<(Style, Vec<u8>), Weak<Socket>>;

/// The sockets with abstract names; each style has names of its own, as on Linux.
static ABSTRACT: SpinLock<AbstractNames> = SpinLock::new(BTreeMap::new());

impl Address {
    /// From a `sockaddr_un`. EINVAL if it is too long, too short or of another family.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let Some((&family, rest)) = bytes.split_first_chunk::<FAMILY_BYTES>() else {
            return Err(Errno::EINVAL);
        };
        if u16::from_ne_bytes(family) != AF_UNIX || rest.len() > PATH_BYTES {
            return Err(Errno::EINVAL);
        }
        match rest.split_first() {
            None => Ok(Address::Unnamed),
            Some((0, name)) => Ok(Address::Abstract(name.to_vec())),
            Some(_) => Ok(Address::Path(rest.iter().copied().take_while(|&b| b != 0).collect())),
        }
    }

    /// As a `sockaddr_un`, with as many bytes as mean something.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = AF_UNIX.to_ne_bytes().to_vec();
        match self {
            Address::Unnamed => {}
            Address::Path(path) => {
                out.extend_from_slice(path);
                out.push(0);
            }
            Address::Abstract(name) => {
                out.push(0);
                out.extend_from_slice(name);
            }
        }
        out
    }

    /// The socket of this name. ECONNREFUSED if there is none or it has been closed, and what paths give.
    pub fn find(&self, style: Style) -> Result<Arc<Socket>> {
        let socket = match self {
            Address::Unnamed => return Err(Errno::EINVAL),
            Address::Abstract(name) => ABSTRACT.lock().get(&(style, name.clone())).cloned(),
            Address::Path(path) => {
                let me = task::current();
                let fs = &me.process.fs;
                let entry = fs.existing(fs.start(), path, Follow::Always)?;
                match &entry.inode.kind {
                    Kind::SocketName(socket) => Some(socket.clone()),
                    _ => None,
                }
            }
        };
        socket.and_then(|s| s.upgrade()).ok_or(Errno::ECONNREFUSED)
    }

    /// Give this name to `socket`. EADDRINUSE if it is taken.
    pub fn take(&self, socket: &Arc<Socket>) -> Result<()> {
        match self {
            Address::Unnamed => Err(Errno::EINVAL),
            Address::Abstract(name) => {
                let key = (socket.style, name.clone());
                let mut all = ABSTRACT.lock();
                if all.get(&key).is_some_and(|s| s.strong_count() > 0) {
                    return Err(Errno::EADDRINUSE);
                }
                all.insert(key, Arc::downgrade(socket));
                Ok(())
            }
            Address::Path(path) => {
                let me = task::current();
                let fs = &me.process.fs;
                let found = fs.walk(fs.start(), path, Follow::Never)?;
                let (parent, name) = found.vacant(false).map_err(in_use)?;
                directory::check_room()?;
                let mode = 0o777 & !fs.umask();
                let inode = Inode::new(Kind::SocketName(Arc::downgrade(socket)), mode, Volume::Root);
                directory::create(&parent, &name, inode).map_err(in_use)?;
                Ok(())
            }
        }
    }

    /// A free abstract name of five hexadecimal digits for `socket`, as Linux chooses them. ENOSPC if there is none.
    pub fn take_any(socket: &Arc<Socket>) -> Result<Self> {
        let free = (0..1u32 << 20).map(|n| Address::Abstract(alloc::format!("{n:05x}").into_bytes()));
        free.into_iter().find(|name| name.take(socket).is_ok()).ok_or(Errno::ENOSPC)
    }

    /// The socket of this name is closed: an abstract one is free again.
    pub fn give_back(&self, style: Style) {
        if let Address::Abstract(name) = self {
            let key = (style, name.clone());
            let mut all = ABSTRACT.lock();
            if all.get(&key).is_some_and(|s| s.strong_count() == 0) {
                all.remove(&key);
            }
        }
    }
}

fn in_use(e: Errno) -> Errno {
    if e == Errno::EEXIST { Errno::EADDRINUSE } else { e }
}
