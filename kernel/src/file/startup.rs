//! What to run first, as the boot image says: the entries `.quire/exec` and, where input must not depend on when it
//! comes, `.quire/input`.
//!
//! It is a sequence of strings, each ended by a NUL: the number of arguments, the arguments, the number of environment
//! variables, those, the working directory, and the program's path in the tree. The other one is the program's standard
//! input, an ordinary file. Both are removed from the tree.

use alloc::{sync::Arc, vec::Vec};
use core::str;

use super::{
    directory,
    entry::Entry,
    path::{self, Follow, Start},
};

const DIRECTORY: &[u8] = b".quire";
const EXEC: &[u8] = b"exec";
const INPUT: &[u8] = b"input";

/// The first program.
pub struct Startup {
    /// Its path.
    pub path: Vec<u8>,
    /// Its arguments, its name first.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, as `NAME=value`.
    pub envp: Vec<Vec<u8>>,
    /// Where it starts.
    pub cwd: Vec<u8>,
}

/// Take both out of the tree: the first program, None if it isn't there or makes no sense, and its input, if there.
pub(super) fn take(root: &Arc<Entry>) -> (Option<Startup>, Option<Arc<Entry>>) {
    let Ok(dir) = path::existing(root, Start::At(root), DIRECTORY, Follow::BeforeSlash) else {
        return (None, None);
    };
    let take = |name| {
        let file = dir.lookup(name).ok()?;
        // What fails here and below leaves the names in the tree, where they do no harm.
        let _ = directory::unlink(&dir, name);
        Some(file)
    };
    let (exec, input) = (take(EXEC), take(INPUT));
    let _ = directory::rmdir(root, DIRECTORY);
    (exec.and_then(|file| Startup::read(&file)), input)
}

impl Startup {
    fn read(file: &Entry) -> Option<Self> {
        let mut bytes = alloc::vec![0; usize::try_from(file.size()).ok()?];
        let n = file.read_at(0, &mut bytes).ok()?;
        bytes.truncate(n);
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut strings = bytes.strip_suffix(&[0])?.split(|&b| b == 0).map(<[u8]>::to_vec);
        let mut list = || {
            let count: usize = str::from_utf8(&strings.next()?).ok()?.parse().ok()?;
            let items: Vec<_> = strings.by_ref().take(count).collect();
            (items.len() == count).then_some(items)
        };
        let (argv, envp) = (list()?, list()?);
        let (cwd, path) = (strings.next()?, strings.next()?);
        strings.next().is_none().then_some(Self { path, argv, envp, cwd })
    }
}
