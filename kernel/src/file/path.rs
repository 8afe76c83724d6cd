//! Path resolution.
//!
//! A path is walked without recursion: what is still to be walked is a byte string, and a symbolic link puts its
//! target in front of it. At most [`MAX_LINKS`] links are followed in one walk, which ends loops (ELOOP).
//!
//! A walk shows whom it is for the last directory, the last name, and what that name stands for now, if anything; so the same
//! walk serves calls that look up, create, remove and rename.
//!
//! # Nothing is counted on the way
//! A walk goes in a section from directory to directory, and they are kept for it ([`reached`](super::reached)). It writes nothing that
//! another CPU reads, as long as the directories' locks are biased to readers. What it finds at its end it shows in the last directory's
//! lock, and only who wants to keep it counts it.
//!
//! A section must not sleep. Where the next step may, as somebody changes the directory, or it is one of /proc and /sys whose entries
//! are made for who looks, the walk counts where it is, ends the section, takes that one step, and begins another. It does the same
//! after [`STEPS`] steps, as grace periods wait for sections. Without a domain of sections (`aspace=locked`) all steps are such.
//!
//! # What a walk finds while the tree changes
//! Each step was true when it was taken: a name is looked up in the lock of its directory, in which it comes and goes; and the parent
//! and the name of a directory change as one, with the locks held of the directories that it moves between. So who has found a
//! directory in its new place finds that place above it. The steps of one walk may be of different times, and a walk that goes down a
//! directory while it is moved may find what was never at that path at any one time. That is so on Linux, too, but where a call
//! forbids to leave a directory. What is removed has no children, and none are put into it; its parent is where it was.
#![allow(unsafe_code)] // goes on from what a section keeps

use alloc::{borrow::Cow, sync::Arc, vec::Vec};

use linux_raw_sys::general as c;

use super::{
    Result,
    entry::Entry,
    inode::{Kind, Target},
    published::{Published, Sight, see},
    reached::Reached,
};
use crate::{
    errno::Errno,
    grace,
    planted::{self, Planted},
};

/// Steps of a walk in one section.
const STEPS: usize = 64;
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

/// Where a walk begins that doesn't begin with a slash.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// In this directory.
    At(&'a Arc<Entry>),
    /// In the directory that is published there.
    In(&'a Published<Arc<Entry>>),
}

impl<'a> Start<'a> {
    fn reached<'s>(self, sight: &'s Sight<'_>) -> Reached<'s>
    where
        'a: 's,
    {
        match self {
            Start::At(entry) => Reached::held(entry),
            Start::In(directory) => Reached::working(directory, sight),
        }
    }
    fn counted(self) -> Arc<Entry> {
        match self {
            Start::At(entry) => entry.clone(),
            Start::In(directory) => directory.read(Arc::clone),
        }
    }
}

/// What a walk shows at its end.
pub struct End<'e> {
    /// The directory that the last name is in; what was found, if the path ended in no name.
    pub parent: Reached<'e>,
    /// The last name; empty unless `last` is a name.
    pub name: &'e [u8],
    /// What it stands for.
    pub child: Option<Reached<'e>>,
    /// What kind of part it was.
    pub last: Last,
    /// The path ended in a slash: it must be a directory.
    pub slash: bool,
}

impl<'e> End<'e> {
    /// What was found. ENOENT if nothing, ENOTDIR if a directory was asked for.
    pub fn existing(&self) -> Result<Reached<'e>> {
        let child = self.child.ok_or(Errno::ENOENT)?;
        if self.slash && !child.inode.kind.is_directory() { Err(Errno::ENOTDIR) } else { Ok(child) }
    }

    /// The same, to be kept.
    fn found(&self) -> Found {
        Found {
            parent: self.parent.counted(),
            name: self.name.to_vec(),
            child: self.child.map(Reached::counted),
            last: self.last,
            slash: self.slash,
        }
    }
}

/// Where a walk ended, counted: for who makes, removes or moves a name.
pub struct Found {
    /// The directory that the last name is in; what was found, if the path ended in no name.
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
    /// The directory and the new name, if nothing is there: EEXIST otherwise.
    pub fn vacant(self, directory: bool) -> Result<(Arc<Entry>, Vec<u8>)> {
        if self.child.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.slash && !directory { Err(Errno::ENOENT) } else { Ok((self.parent, self.name)) }
    }
}

/// How a walk takes its steps, from entries that are there for `'s`.
trait Manner<'s> {
    /// Where it is after one.
    type At;
    /// The directory above.
    fn above(&self, at: Reached<'s>) -> Self::At;
    /// Look for the child `name`. `see` says what it wants to be told of it, or, of a directory, that the walk goes on there.
    fn look<T>(
        &self,
        at: Reached<'s>,
        name: &[u8],
        see: impl FnOnce(Option<&Arc<Entry>>) -> Result<Option<T>>,
    ) -> Result<Looked<Self::At, T>>;
}

enum Looked<A, T> {
    On(A),
    Told(T),
    /// Not without sleeping.
    Sleeps,
}

/// Without sleeping, in a section.
struct Passing<'s>(&'s Sight<'s>);

impl<'s> Manner<'s> for Passing<'s> {
    type At = Reached<'s>;
    fn above(&self, at: Reached<'s>) -> Reached<'s> {
        at.parent(self.0)
    }
    fn look<T>(
        &self,
        at: Reached<'s>,
        name: &[u8],
        see: impl FnOnce(Option<&Arc<Entry>>) -> Result<Option<T>>,
    ) -> Result<Looked<Reached<'s>, T>> {
        let (Kind::Directory(directory), Some(section)) = (&at.inode.kind, self.0.section()) else {
            return Ok(Looked::Sleeps);
        };
        let looked = directory.look(name, section.pin(), |child| {
            // Where it leads may have to be found out first.
            if child.is_some_and(|child| matches!(child.inode.kind, Kind::Link(_))) {
                return Ok(Looked::Sleeps);
            }
            match (see(child)?, child) {
                (Some(told), _) => Ok(Looked::Told(told)),
                // SAFETY: it was seen in its directory's lock, which is held here.
                (None, Some(child)) => Ok(Looked::On(unsafe { Reached::child(child, section) })),
                (None, None) => Err(Errno::ENOENT),
            }
        });
        looked.unwrap_or(Ok(Looked::Sleeps))
    }
}

/// From this entry, counted, to one that is counted.
struct Sleeping<'s>(&'s Arc<Entry>);

impl<'s> Manner<'s> for Sleeping<'s> {
    type At = Arc<Entry>;
    fn above(&self, _: Reached<'s>) -> Arc<Entry> {
        self.0.parent()
    }
    fn look<T>(
        &self,
        _: Reached<'s>,
        name: &[u8],
        see: impl FnOnce(Option<&Arc<Entry>>) -> Result<Option<T>>,
    ) -> Result<Looked<Arc<Entry>, T>> {
        let child = match self.0.lookup(name) {
            Err(Errno::ENOENT) => None,
            found => Some(found?),
        };
        match (see(child.as_ref())?, child) {
            (Some(told), _) => Ok(Looked::Told(told)),
            (None, Some(child)) => Ok(Looked::On(child)),
            (None, None) => Err(Errno::ENOENT),
        }
    }
}

/// What is to be known of a child that the walk doesn't simply go on from.
enum Told<R> {
    Link(Target),
    Ended(R),
}

/// What a step came to.
enum Step<A, R> {
    On(A),
    /// By a link of /proc.
    OnCounted(Arc<Entry>),
    /// Where the walk is; a part was no step, or a link leads on from here.
    Here,
    /// By a link that begins with a slash.
    Root,
    Sleeps,
    Ended(R),
}

/// What a section came to.
enum Passed<R> {
    /// The next step may sleep.
    Stopped(Arc<Entry>),
    Ended(R),
}

/// A walk under way.
struct Walk<'p> {
    root: &'p Arc<Entry>,
    path: Cow<'p, [u8]>,
    /// Bytes of it that are walked.
    done: usize,
    follow: Follow,
    links: usize,
    last: Last,
}

impl<'p> Walk<'p> {
    /// Walk the next part of the path, from `at`.
    fn step<'s, M: Manner<'s>, R>(
        &mut self,
        manner: &M,
        at: Reached<'s>,
        end: &mut impl FnMut(End<'_>) -> R,
    ) -> Result<Step<M::At, R>> {
        let Some((part, tail)) = split(self.path.get(self.done..).unwrap_or(&[])) else {
            let (child, last) = (Some(at), self.last);
            return Ok(Step::Ended(end(End { parent: at, name: &[], child, last, slash: false })));
        };
        if !at.inode.kind.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let next = self.path.len() - tail.len();
        if part == b"." || part == b".." {
            let up = part == b"..";
            (self.done, self.last) = (next, if up { Last::DotDot } else { Last::Dot });
            return Ok(if up && !at.is(self.root) { Step::On(manner.above(at)) } else { Step::Here });
        }
        if part.len() > c::NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        let (is_last, slash) = (tail.iter().all(|&b| b == b'/'), !tail.is_empty());
        let follows = !is_last || self.follow.at_last(slash);
        let looked = manner.look(at, part, |child| {
            let kind = child.map(|child| &child.inode.kind);
            if let Some(link) = kind.filter(|kind| kind.is_link() && follows) {
                let target = if self.links < MAX_LINKS { target(link)? } else { return Err(Errno::ELOOP) };
                return Ok(Some(Told::Link(target)));
            }
            if is_last {
                let child = child.map(Reached::held);
                let ended = end(End { parent: at, name: part, child, last: Last::Name, slash });
                return Ok(Some(Told::Ended(ended)));
            }
            match kind {
                Some(kind) if kind.is_directory() => Ok(None),
                Some(_) => Err(Errno::ENOTDIR),
                None => Err(Errno::ENOENT),
            }
        })?;
        let target = match looked {
            Looked::On(child) => {
                (self.done, self.last) = (next, Last::Whole);
                return Ok(Step::On(child));
            }
            Looked::Told(Told::Ended(ended)) => return Ok(Step::Ended(ended)),
            Looked::Sleeps => return Ok(Step::Sleeps),
            Looked::Told(Told::Link(target)) => target,
        };
        self.links += 1;
        self.last = Last::Whole;
        match target {
            Target::Entry(entry) if slash && !entry.inode.kind.is_directory() => Err(Errno::ENOTDIR),
            Target::Entry(entry) => {
                self.done = next;
                Ok(Step::OnCounted(entry))
            }
            Target::Path(path) => self.go_by(path, next),
        }
    }

    /// Walk `path`, a link's target, in front of what comes from `next` on.
    fn go_by<A, R>(&mut self, mut path: Vec<u8>, next: usize) -> Result<Step<A, R>> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let step = if path.starts_with(b"/") { Step::Root } else { Step::Here };
        path.extend_from_slice(self.path.get(next..).unwrap_or(&[]));
        (self.path, self.done) = (Cow::Owned(path), 0);
        Ok(step)
    }

    /// Walk on from `at` as far as that goes without sleeping.
    fn pass<'s, R>(
        &mut self,
        mut at: Reached<'s>,
        sight: &'s Sight<'s>,
        end: &mut impl FnMut(End<'_>) -> R,
    ) -> Result<Passed<R>>
    where
        'p: 's,
    {
        let root = self.root;
        for _ in 0..STEPS {
            if self.follow == Follow::Always {
                // Not who removes it, who must be faster.
                planted::hesitate(Planted::EntryFreedEarly);
            }
            match self.step(&Passing(sight), at, end)? {
                Step::On(next) => at = next,
                Step::OnCounted(entry) => return Ok(Passed::Stopped(entry)),
                Step::Here => {}
                Step::Root => at = Reached::held(root),
                Step::Sleeps => break,
                Step::Ended(ended) => return Ok(Passed::Ended(ended)),
            }
        }
        Ok(Passed::Stopped(at.counted()))
    }

    /// All of it.
    fn run<R>(&mut self, start: Start<'_>, end: &mut impl FnMut(End<'_>) -> R) -> Result<R> {
        // Where it is, if that is counted.
        let mut held: Option<Arc<Entry>> = None;
        loop {
            let start = held.as_ref().map_or(start, Start::At);
            let at = match grace::domain() {
                Some(_) => match see(|sight| self.pass(start.reached(sight), sight, end))? {
                    Passed::Ended(ended) => return Ok(ended),
                    Passed::Stopped(at) => at,
                },
                None => start.counted(),
            };
            held = Some(match self.step(&Sleeping(&at), Reached::held(&at), end)? {
                Step::On(next) | Step::OnCounted(next) => next,
                Step::Here | Step::Sleeps => at,
                Step::Root => self.root.clone(),
                Step::Ended(ended) => return Ok(ended),
            });
        }
    }
}

/// Walk `path` from `start`, or from `root` if it begins with a slash. `end` is called once, with what there is at its end: in a
/// section, and with the directory locked. It must not sleep, nor look into another directory, or into a file.
pub fn find<R>(
    root: &Arc<Entry>,
    start: Start<'_>,
    path: &[u8],
    follow: Follow,
    mut end: impl FnMut(End<'_>) -> R,
) -> Result<R> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let start = if path.starts_with(b"/") { Start::At(root) } else { start };
    let path = Cow::Borrowed(path);
    Walk { root, path, done: 0, follow, links: 0, last: Last::Whole }.run(start, &mut end)
}

/// The same, with all that is at its end counted.
pub fn walk(root: &Arc<Entry>, start: Start<'_>, path: &[u8], follow: Follow) -> Result<Found> {
    find(root, start, path, follow, |end| end.found())
}

/// What `path` stands for, counted.
pub fn existing(root: &Arc<Entry>, start: Start<'_>, path: &[u8], follow: Follow) -> Result<Arc<Entry>> {
    find(root, start, path, follow, |end| end.existing().map(Reached::counted))?
}

/// The first part of `path`, and what follows it, from its slash on; None if nothing but slashes is left.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|&b| b != b'/')?;
    let path = path.get(start..)?;
    let end = path.iter().position(|&b| b == b'/').unwrap_or(path.len());
    path.split_at_checked(end)
}

/// Where the symbolic link leads that is of this kind.
fn target(kind: &Kind) -> Result<Target> {
    match kind {
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
