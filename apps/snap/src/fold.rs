//! Folding: a base and its deltas into a base of the last one's epoch, from the files alone.
//!
//! Two passes. The first reads and checks all files, and notes of each page where its last record is. The second
//! copies these records in the order of pages, comparing their checksums with those of the first. So no damage is
//! passed on as whole. Neither needs memory but for the notes.

use std::collections::BTreeMap;

use crc32c::crc32c;

use crate::{
    chain::Link,
    disk::{Disk, Source},
    format::{Codec, Header},
    read,
    write::{self, Writer},
};

/// Where a page's last record is.
struct Place {
    file: usize,
    at: u64,
    stored: u32,
    crc: u32,
}

/// Fold a chain; the new base.
///
/// # Errors
/// What went wrong: a file that is no longer whole, or that cannot be written.
pub fn fold(disk: &dyn Disk, chain: &[Link]) -> Result<Link, String> {
    let Some(last) = chain.last() else { return Err("there is nothing to fold".to_owned()) };
    let header = Header { parent: None, ..last.header };
    let mut sources: Vec<(Box<dyn Source>, Codec)> = Vec::new();
    let mut places: BTreeMap<u32, Place> = BTreeMap::new();
    let mut state = Vec::new();
    for (file, link) in chain.iter().enumerate() {
        let named = |reason: String| format!("{}: {reason}", link.name);
        let source = disk.open(&link.name).map_err(|error| named(error.to_string()))?;
        let note = |record: read::Record, stored: &[u8]| {
            let read::Record { page, at, stored: len } = record;
            places.insert(page, Place { file, at, stored: len, crc: crc32c(stored) });
        };
        let (found, its_state, _) = read::image(&*source, note).map_err(named)?;
        if found != link.header {
            return Err(named("it was replaced".to_owned()));
        }
        state = its_state;
        sources.push((source, found.codec));
    }
    let mut writer = Writer::new(disk, header);
    let mut stored = Vec::new();
    for (page, place) in places {
        let (source, codec) = &sources[place.file];
        stored.resize(place.stored as usize, 0);
        source.read(place.at, &mut stored).map_err(|error| error.to_string())?;
        if crc32c(&stored) != place.crc {
            return Err(format!("{}: page {page} changed while it was read", chain[place.file].name));
        }
        if *codec == header.codec {
            writer.stored(page, &stored);
        } else {
            let mut result = Ok(());
            writer.page(page, |to| result = read::unpack(*codec, &stored, to));
            result?;
        }
        if !writer.works() {
            break;
        }
    }
    let length = writer.finish(disk, &state).map_err(|error| error.to_string())?;
    Ok(Link { name: write::name(&header), header, length })
}
