//! Path resolution.
//!
//! A path is walked without recursion: what is still to be walked is a byte string, and a symbolic link puts its
//! target in front of it. At most [`MAX_LINKS`] links are followed in one walk, which ends loops (ELOOP).
//!
//! A walk answers with the last directory, the last name, and what that name stands for now, if anything; so the same
//! walk serves calls that look up, create, remove and rename.

use alloc::{borrow::Cow, sync::Arc, vec::Vec};

use super::{
    Result,
    entry::Entry,
    inode::{Kind, Target},
};
use crate::errno::Errno;

/// The most symbolic links in one walk; as on Linux.
const MAX_LINKS: usize = 40;

/// What the last part of a path was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    /// A name.
    Name,
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// The path was `/`, or led through a link of /proc to a file itself.
    Whole,
}

/// Whether a symbolic link in the last place is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Yes.
    Always,
    /// Only if a slash comes after it: for calls that want the link itself.
    BeforeSlash,
    /// Only if no slash comes after it: for calls that may create a file there.
    UnlessSlash,
    /// No: for calls that create, remove or rename the last name.
    Never,
}

impl Follow {
    fn at_last(self, slash: bool) -> bool {
        match self {
            Follow::Always => true,
            Follow::BeforeSlash => slash,
            Follow::UnlessSlash => !slash,
            Follow::Never => false,
        }
    }
}

/// Where a walk ended.
pub struct Found {
    /// The directory that the last name is in.
    pub parent: Arc<Entry>,
    /// The last name; empty unless `last` is a name.
    pub name: Vec<u8>,
    /// What it stands for.
    pub child: Option<Arc<Entry>>,
    /// What kind of part it was.
    pub last: Last,
    /// The path ended in a slash: it must be a directory.
    pub slash: bool,
}

impl Found {
    /// What was found. ENOENT if nothing, ENOTDIR if a directory was asked for.
    pub fn existing(self) -> Result<Arc<Entry>> {
        let child = self.child.ok_or(Errno::ENOENT)?;
        if self.slash && !child.inode.kind.is_directory() { Err(Errno::ENOTDIR) } else { Ok(child) }
    }

    /// The directory and the new name, if nothing is there: EEXIST otherwise.
    pub fn vacant(self, directory: bool) -> Result<(Arc<Entry>, Vec<u8>)> {
        if self.child.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.slash && !directory { Err(Errno::ENOENT) } else { Ok((self.parent, self.name)) }
    }
}

/// Walk `path` from `start`, or from `root` if it begins with a slash.
pub fn walk(root: &Arc<Entry>, start: &Arc<Entry>, path: &[u8], follow: Follow) -> Result<Found> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mut rest = Cow::Borrowed(path);
    let mut done = 0; // bytes of `rest` that are walked
    let mut at = if path.starts_with(b"/") { root.clone() } else { start.clone() };
    let mut last = Last::Whole;
    let mut links = 0;
    loop {
        let Some((part, tail)) = split(rest.get(done..).unwrap_or(&[])) else {
            return Ok(Found { parent: at.parent(), name: Vec::new(), child: Some(at), last, slash: false });
        };
        if !at.inode.kind.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let is_last = tail.iter().all(|&b| b == b'/');
        let slash = !tail.is_empty();
        if part == b"." || part == b".." {
            last = if part == b"." { Last::Dot } else { Last::DotDot };
            if last == Last::DotDot {
                at = if Arc::ptr_eq(&at, root) { at } else { at.parent() };
            }
            done = rest.len() - tail.len();
            continue;
        }
        last = Last::Whole;
        let child = match at.lookup(part) {
            Err(Errno::ENOENT) if is_last => None,
            result => Some(result?),
        };
        match child {
            Some(link) if link.inode.kind.is_link() && (!is_last || follow.at_last(slash)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP);
                }
                match target(&link)? {
                    Target::Entry(entry) => {
                        at = entry;
                        done = rest.len() - tail.len();
                        if slash && !at.inode.kind.is_directory() {
                            return Err(Errno::ENOTDIR);
                        }
                    }
                    Target::Path(mut path) => {
                        if path.is_empty() {
                            return Err(Errno::ENOENT);
                        }
                        if path.starts_with(b"/") {
                            at = root.clone();
                        }
                        path.extend_from_slice(tail);
                        rest = Cow::Owned(path);
                        done = 0;
                    }
                }
            }
            child if is_last => {
                return Ok(Found { parent: at, name: part.to_vec(), child, last: Last::Name, slash });
            }
            Some(child) => {
                done = rest.len() - tail.len();
                at = child;
            }
            None => return Err(Errno::ENOENT),
        }
    }
}

/// The first part of `path`, and what follows it, from its slash on; None if nothing but slashes is left.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|&b| b != b'/')?;
    let path = path.get(start..)?;
    let end = path.iter().position(|&b| b == b'/').unwrap_or(path.len());
    path.split_at_checked(end)
}

/// Where the symbolic link `link` leads.
fn target(link: &Arc<Entry>) -> Result<Target> {
    match &link.inode.kind {
        Kind::Symlink(path) => Ok(Target::Path(path.to_vec())),
        Kind::Link(link) => link.follow(),
        _ => Err(Errno::EINVAL),
    }
}

/// What `readlink` says about `entry`. EINVAL if it is no symbolic link.
pub fn read_link(entry: &Arc<Entry>) -> Result<Vec<u8>> {
    match &entry.inode.kind {
        Kind::Symlink(path) => Ok(path.to_vec()),
        Kind::Link(link) => link.text(),
        _ => Err(Errno::EINVAL),
    }
}
