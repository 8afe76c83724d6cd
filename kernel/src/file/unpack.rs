//! From the boot image to a tree.

use alloc::{collections::BTreeMap, sync::Arc};

use linux_raw_sys::general as c;

use super::{
    Result,
    cpio::{Archive, Item, Malformed},
    dev::{Device, number},
    directory::{self, Directory},
    entry::Entry,
    inode::{Inode, Kind, Time, Volume},
    path::{self, Follow, Start},
    pipe::Pipe,
    store::Store,
};
use crate::errno::Errno;

/// What makes two entries of an archive the same file.
type Identity = (u32, u32, u32);

/// Put everything in `image` into the tree at `root`. Entries that don't fit the tree (a file where a directory must
/// be) are left out, as Linux does.
pub fn unpack(root: &Arc<Entry>, image: &'static [u8]) -> core::result::Result<(), Malformed> {
    // A file with several names has its contents at one of them only, usually the last.
    let mut contents: BTreeMap<Identity, &'static [u8]> = BTreeMap::new();
    for item in Archive::new(image).map_while(|i| i.ok()) {
        if item.links > 1 && !item.data.is_empty() {
            contents.insert(item.identity, item.data);
        }
    }
    let mut files: BTreeMap<Identity, Arc<Entry>> = BTreeMap::new();
    for item in Archive::new(image) {
        let item = item?;
        let linked = item.links > 1 && item.mode & c::S_IFMT == c::S_IFREG;
        let data = if linked { contents.get(&item.identity).copied().unwrap_or(&[]) } else { item.data };
        let first = files.get(&item.identity).filter(|_| linked);
        if let Ok(Some(entry)) = place(root, &item, data, first)
            && linked
        {
            files.entry(item.identity).or_insert(entry);
        }
    }
    Ok(())
}

/// Put one entry into the tree. `first`: another name of the same file. None for a directory that was there.
fn place(
    root: &Arc<Entry>,
    item: &Item<'static>,
    data: &'static [u8],
    first: Option<&Arc<Entry>>,
) -> Result<Option<Arc<Entry>>> {
    let (parent, name) = match item.name.iter().rposition(|&b| b == b'/') {
        Some(slash) => {
            let (dir, name) = item.name.split_at_checked(slash).ok_or(Errno::EINVAL)?;
            (make_directories(root, dir)?, name.get(1..).unwrap_or(&[]))
        }
        None => (root.clone(), item.name),
    };
    if name.is_empty() || name == b"." {
        set_meta(&root.inode, item);
        return Ok(None);
    }
    let is_directory = item.mode & c::S_IFMT == c::S_IFDIR;
    match parent.lookup(name) {
        Ok(there) if is_directory && there.inode.kind.is_directory() => {
            set_meta(&there.inode, item);
            return Ok(None);
        }
        Ok(_) => directory::unlink(&parent, name)?,
        Err(Errno::ENOENT) => {}
        Err(e) => return Err(e),
    }
    if let Some(first) = first {
        directory::link(first, &parent, name)?;
        return Ok(None);
    }
    let kind = match item.mode & c::S_IFMT {
        c::S_IFDIR => Kind::Directory(Directory::new()),
        c::S_IFREG => Kind::File(Store::new(data)),
        c::S_IFLNK => Kind::Symlink(data.into()),
        c::S_IFIFO => Kind::Fifo(Pipe::new()?),
        c::S_IFCHR => Kind::Device(Device::with_number(number(item.device.0.into(), item.device.1.into()))),
        _ => return Err(Errno::EINVAL),
    };
    let entry = directory::create(&parent, name, Inode::new(kind, item.mode, Volume::Root))?;
    set_meta(&entry.inode, item);
    Ok(Some(entry))
}

fn set_meta(inode: &Inode, item: &Item<'_>) {
    let time = Time { sec: item.modified.into(), nsec: 0 };
    inode.update(|m| {
        m.mode = item.mode & 0o7777;
        (m.uid, m.gid) = (item.uid, item.gid);
        (m.accessed, m.modified, m.changed) = (time, time, time);
    });
}

/// The directory `path` below `root`, made with those above it where they are missing.
fn make_directories(root: &Arc<Entry>, path: &[u8]) -> Result<Arc<Entry>> {
    let mut at = root.clone();
    for part in path.split(|&b| b == b'/').filter(|p| !p.is_empty()) {
        let found = path::walk(root, Start::At(&at), part, Follow::Always)?;
        at = match found.child {
            Some(there) => there,
            None => {
                let inode = Inode::new(Kind::Directory(Directory::new()), 0o755, Volume::Root);
                directory::create(&found.parent, &found.name, inode)?
            }
        };
    }
    Ok(at)
}
