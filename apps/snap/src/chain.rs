//! Images upon images: which epoch can be restored, and from which files.
//!
//! A chain is a base, and deltas each of which names the one before as its parent, by epoch and id. An epoch may have
//! both a base and a delta, after a fold: either stands for it, and the base is tried first. What is restored is the
//! newest epoch with a chain all of whose files are whole. Each file is read and checked once, all of it, before a byte
//! of any is put into the region.

use std::collections::BTreeMap;

use crate::{
    disk::Disk,
    error::{Error, io},
    format::Header,
    read::{self, Record},
};

/// A file of a chain, which was found whole.
#[derive(Clone, Debug)]
pub struct Link {
    pub name: String,
    pub header: Header,
    pub length: u64,
}

/// What a folder has.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest chain, the base first; empty if there are no images at all.
    pub chain: Vec<Link>,
    /// The state of its last file.
    pub state: Vec<u8>,
    /// What is wrong with others that were looked at.
    pub warnings: Vec<String>,
    /// The newest epoch that any file's name has, whole or not.
    pub newest: u64,
}

/// Epoch of an image by its name, and whether it is a base.
pub fn parse(name: &str) -> Option<(u64, bool)> {
    let (epoch, kind) = name.split_once('.')?;
    let base = match kind {
        "base" => true,
        "delta" => false,
        _ => return None,
    };
    Some((epoch.parse().ok()?, base))
}

/// A file that was checked, with its state, or what is wrong with it.
type Verdict = Result<(Link, Vec<u8>), String>;

/// Files that have been checked.
struct Checked<'d> {
    disk: &'d dyn Disk,
    known: BTreeMap<(u64, bool), Verdict>,
}

impl Checked<'_> {
    fn get(&mut self, epoch: u64, base: bool) -> &Verdict {
        let name = format!("{epoch}.{}", if base { "base" } else { "delta" });
        self.known.entry((epoch, base)).or_insert_with(|| {
            let source = self.disk.open(&name).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                _ => error.to_string(),
            })?;
            let (header, state, length) = read::image(&*source, |_, _| ())?;
            if (header.epoch, header.parent.is_none()) != (epoch, base) {
                return Err("it has another image's name".to_owned());
            }
            Ok((Link { name, header, length }, state))
        })
    }

    /// The chain of an epoch, its last file first.
    fn chain(&mut self, epoch: u64) -> Result<Vec<Link>, String> {
        let mut chain: Vec<Link> = Vec::new();
        let (mut epoch, mut id) = (epoch, None);
        loop {
            let mut reasons = Vec::new();
            let mut found = None;
            for base in [true, false] {
                match self.get(epoch, base) {
                    Ok((link, _)) if id.is_none_or(|id| id == link.header.id) => {
                        found = Some(link.clone());
                        break;
                    }
                    Ok((link, _)) => reasons.push(format!("{} is of another history", link.name)),
                    Err(reason) => {
                        reasons.push(format!("{epoch}.{}: {reason}", if base { "base" } else { "delta" }))
                    }
                }
            }
            let link = found.ok_or_else(|| reasons.join(", "))?;
            let parent = link.header.parent;
            chain.push(link);
            match parent {
                Some((parent, parent_id)) => (epoch, id) = (parent, Some(parent_id)),
                None => return Ok(chain),
            }
        }
    }
}

/// Look for the newest chain that is whole.
///
/// # Errors
/// [`Error::NothingWhole`] if there are images and none has one; [`Error::Io`] if the folder cannot be listed.
pub fn find(disk: &dyn Disk) -> Result<Found, Error> {
    let names = disk.list().map_err(io("cannot list the images"))?;
    let mut epochs: Vec<(u64, bool)> = names.iter().filter_map(|name| parse(name)).collect();
    epochs.sort_unstable();
    let mut found = Found { newest: epochs.last().map_or(0, |&(epoch, _)| epoch), ..Found::default() };
    let mut checked = Checked { disk, known: BTreeMap::new() };
    let mut candidates: Vec<u64> = epochs.iter().map(|&(epoch, _)| epoch).collect();
    candidates.dedup();
    for epoch in candidates.into_iter().rev() {
        match checked.chain(epoch) {
            Ok(mut chain) => {
                chain.reverse();
                if let Some(Link { header, .. }) = chain.last()
                    && let Ok((_, state)) = checked.get(epoch, header.parent.is_none())
                {
                    found.state.clone_from(state);
                }
                found.chain = chain;
                break;
            }
            Err(reason) => found.warnings.push(format!("epoch {epoch} cannot be restored: {reason}")),
        }
    }
    // A base that is damaged where the delta stands in for it.
    for (&(epoch, base), file) in &checked.known {
        if let Err(reason) = file
            && epochs.contains(&(epoch, base))
        {
            let text = format!("{epoch}.{} is damaged: {reason}", if base { "base" } else { "delta" });
            found.warnings.push(text);
        }
    }
    if found.chain.is_empty() && !epochs.is_empty() {
        return Err(Error::NothingWhole { reasons: found.warnings });
    }
    if let Some(last) = found.chain.last()
        && last.header.epoch != found.newest
    {
        let (epoch, newest) = (last.header.epoch, found.newest);
        found.warnings.push(format!("epoch {epoch} is restored, not {newest}: what came after it is lost"));
    }
    Ok(found)
}

/// Hand out the pages of a chain, older files first: a page may come several times, and the last one counts.
///
/// # Errors
/// [`Error::NothingWhole`] if a file is not as it was when it was found.
pub fn pages(disk: &dyn Disk, chain: &[Link], mut each: impl FnMut(u32, &[u8])) -> Result<(), Error> {
    for link in chain {
        let damaged =
            |reason: String| Error::NothingWhole { reasons: vec![format!("{}: {reason}", link.name)] };
        let source = disk.open(&link.name).map_err(|error| damaged(error.to_string()))?;
        let mut page = vec![0; link.header.page as usize];
        let mut failed = Ok(());
        let one = |record: Record, stored: &[u8]| match read::unpack(link.header.codec, stored, &mut page) {
            Ok(()) => each(record.page, &page),
            Err(reason) => failed = Err(damaged(reason)),
        };
        read::image(&*source, one).map_err(damaged)?;
        failed?;
    }
    Ok(())
}

/// The newest image of a folder, in ordinary memory: for tools, and to compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The number of its cut.
    pub epoch: u64,
    /// The state of the program.
    pub state: Vec<u8>,
    /// The region's bytes.
    pub bytes: Vec<u8>,
    /// What is wrong with newer ones.
    pub warnings: Vec<String>,
}

impl Image {
    /// Read it; `None` if there are no images.
    ///
    /// # Errors
    /// [`Error::NothingWhole`] or [`Error::Io`].
    pub fn read(disk: &dyn Disk) -> Result<Option<Self>, Error> {
        let Found { chain, state, warnings, .. } = find(disk)?;
        let Some(Link { header, .. }) = chain.last() else { return Ok(None) };
        let epoch = header.epoch;
        let mut bytes = vec![0; header.region as usize];
        let size = header.page as usize;
        pages(disk, &chain, |page, contents| {
            bytes[page as usize * size..][..size].copy_from_slice(contents);
        })?;
        Ok(Some(Self { epoch, state, bytes, warnings }))
    }
}
