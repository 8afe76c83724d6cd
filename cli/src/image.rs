//! The initramfs: the tree of files that the guest starts with, as a cpio archive in the "newc" format.
//!
//! The format (cpio(5), and the kernel's `initramfs/buffer-format.rst`): for each entry a header of 110 ASCII bytes
//! ("070701" and thirteen fields of eight hexadecimal digits), the name with a zero byte, padding to a multiple of
//! four, the contents, padding again; a last entry is named "TRAILER!!!". A parent comes before its children: the
//! entries are kept sorted by path, and every insertion adds the directories above it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use anyhow::{Context, Result, bail};

const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const FIFO: u32 = 0o010_000;

/// The entry that tells the kernel what to execute; it removes it after reading.
const EXEC_ENTRY: &[u8] = b".quire/exec";
/// The entry that is the program's standard input, if there; the kernel takes it out too.
const INPUT_ENTRY: &[u8] = b".quire/input";

/// What the guest is to execute first.
pub struct Exec {
    /// Arguments, the zeroth first.
    pub argv: Vec<Vec<u8>>,
    /// The environment, `NAME=VALUE` each.
    pub env: Vec<Vec<u8>>,
    /// The working directory, absolute.
    pub cwd: Vec<u8>,
    /// The guest path of the program, absolute.
    pub path: Vec<u8>,
}

impl Exec {
    /// As the kernel reads it: counts in decimal, and every string with a zero byte after it.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |string: &[u8]| {
            bytes.extend_from_slice(string);
            bytes.push(0);
        };
        for list in [&self.argv, &self.env] {
            put(list.len().to_string().as_bytes());
            list.iter().for_each(|string| put(string));
        }
        put(&self.cwd);
        put(&self.path);
        bytes
    }
}

enum Contents {
    None,
    Bytes(Vec<u8>),
    Host(File, u64),
}

struct Entry {
    /// Type and permissions.
    mode: u32,
    /// Seconds since 1970.
    mtime: u32,
    contents: Contents,
}

/// A tree of files to be packed. Paths are relative to the guest's root.
#[derive(Default)]
pub struct Image {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Image {
    /// The directories and files that programs take for granted; what is already there stays.
    pub fn skeleton(&mut self) {
        for dir in ["bin", "dev", "etc", "proc", "root", "run", "sys", "usr/bin", "var/tmp"] {
            self.directory(dir.as_bytes(), 0o755);
        }
        for dir in ["tmp", "var/tmp"] {
            self.directory(dir.as_bytes(), 0o1777);
        }
        for (path, text) in [("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", "root:x:0:\n")]
        {
            if !self.contains(path.as_bytes()) {
                self.file(path.as_bytes(), text.into(), 0o644);
            }
        }
    }

    /// Whether something has this path.
    pub fn contains(&self, path: &[u8]) -> bool {
        self.entries.contains_key(clean(path).as_slice())
    }

    /// Whether this path leads to something, through symbolic links too.
    pub fn leads_somewhere(&self, path: &[u8]) -> bool {
        let mut path = clean(path);
        // As many links in a row as Linux follows.
        for _ in 0..40 {
            let ends = (0..=path.len()).filter(|end| path.get(*end).is_none_or(|byte| *byte == b'/'));
            let link = ends.map(|end| path.split_at(end)).find_map(|(at, rest)| {
                let entry = self.entries.get(at)?;
                match &entry.contents {
                    Contents::Bytes(target) if entry.mode & KIND == SYMLINK => Some((at, target, rest)),
                    _ => None,
                }
            });
            let Some((at, target, rest)) = link else { return self.contains(&path) };
            let above = if target.starts_with(b"/") { &b""[..] } else { parent(at) };
            path = clean(&[above, b"/", target, b"/", rest].concat());
        }
        false
    }

    /// A directory with these permissions, unless there is one.
    pub fn directory(&mut self, path: &[u8], permissions: u32) {
        let path = clean(path);
        if !path.is_empty() && !self.entries.contains_key(&path) {
            self.insert(path, DIRECTORY | permissions, 0, Contents::None);
        }
    }

    /// A regular file.
    pub fn file(&mut self, path: &[u8], bytes: Vec<u8>, permissions: u32) {
        self.insert(clean(path), REGULAR | permissions, 0, Contents::Bytes(bytes));
    }

    /// A symbolic link, unless something has this path.
    pub fn symlink(&mut self, path: &[u8], target: &[u8]) {
        if !self.contains(path) {
            self.insert(clean(path), SYMLINK | 0o777, 0, Contents::Bytes(target.to_vec()));
        }
    }

    /// What is to be executed.
    pub fn exec(&mut self, exec: &Exec) {
        self.file(EXEC_ENTRY, exec.encode(), 0o600);
    }

    /// What the program reads as its standard input.
    pub fn input(&mut self, bytes: Vec<u8>) {
        self.file(INPUT_ENTRY, bytes, 0o600);
    }

    /// Forget when files were changed, which says nothing about what is in them.
    pub fn forget_times(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.mtime = 0);
    }

    /// A host file or directory, with all that is in it. A symbolic link is followed here, but kept as one inside a
    /// directory. Sockets and devices are left out: the guest makes its own.
    pub fn bind(&mut self, host: &Path, guest: &[u8]) -> Result<()> {
        let metadata = fs::metadata(host).with_context(|| format!("cannot pack {}", host.display()))?;
        self.add(host, clean(guest), &metadata)
    }

    fn add(&mut self, host: &Path, guest: Vec<u8>, metadata: &fs::Metadata) -> Result<()> {
        let cannot = || format!("cannot pack {}", host.display());
        let permissions = metadata.mode() & 0o7777;
        let mtime = u32::try_from(metadata.mtime()).unwrap_or(0);
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !guest.is_empty() {
                self.insert(guest.clone(), DIRECTORY | permissions, mtime, Contents::None);
            }
            for child in fs::read_dir(host).with_context(cannot)? {
                let child = child.with_context(cannot)?;
                let below = join(&guest, &child.file_name());
                let metadata = child.metadata().with_context(cannot)?;
                self.add(&child.path(), below, &metadata)?;
            }
        } else if guest.is_empty() {
            bail!("{} is a file and cannot be the guest's root", host.display());
        } else if kind.is_file() {
            let file = File::open(host).with_context(cannot)?;
            if u32::try_from(metadata.len()).is_err() {
                bail!("{} has 4 GiB or more, which the archive cannot hold", host.display());
            }
            self.insert(guest, REGULAR | permissions, mtime, Contents::Host(file, metadata.len()));
        } else if kind.is_symlink() {
            let target = fs::read_link(host).with_context(cannot)?;
            let bytes = target.as_os_str().as_bytes().to_vec();
            self.insert(guest, SYMLINK | 0o777, mtime, Contents::Bytes(bytes));
        } else if kind.is_fifo() {
            self.insert(guest, FIFO | permissions, mtime, Contents::None);
        }
        Ok(())
    }

    fn insert(&mut self, path: Vec<u8>, mode: u32, mtime: u32, contents: Contents) {
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.entries.entry(path[..end].to_vec()).or_insert(Entry {
                mode: DIRECTORY | 0o755,
                mtime: 0,
                contents: Contents::None,
            });
        }
        self.entries.insert(path, Entry { mode, mtime, contents });
    }

    /// Write the archive; its size in bytes.
    pub fn write(self, to: impl Write) -> io::Result<u64> {
        let mut archive = Archive { to, written: 0, inode: 0 };
        for (path, entry) in self.entries {
            archive.entry(&path, entry)?;
        }
        archive.entry(b"TRAILER!!!", Entry { mode: 0, mtime: 0, contents: Contents::None })?;
        archive.to.flush()?;
        Ok(archive.written)
    }
}

struct Archive<W> {
    to: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, path: &[u8], entry: Entry) -> io::Result<()> {
        let size = match &entry.contents {
            Contents::None => 0,
            Contents::Bytes(bytes) => bytes.len() as u64,
            Contents::Host(_, length) => *length,
        };
        self.inode += 1;
        let links = if entry.mode & KIND == DIRECTORY { 2 } else { 1 };
        write!(
            self.to,
            "070701{:08x}{:08x}{:08x}{:08x}{links:08x}{:08x}",
            self.inode, entry.mode, 0, 0, entry.mtime
        )?;
        write!(self.to, "{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 0, 0, path.len() + 1, 0)?;
        self.to.write_all(path)?;
        self.to.write_all(&[0])?;
        self.written += 110 + path.len() as u64 + 1;
        self.pad()?;
        match entry.contents {
            Contents::None => 0,
            Contents::Bytes(bytes) => self.to.write_all(&bytes).map(|()| size)?,
            Contents::Host(file, length) => {
                // A file that grows meanwhile is cut; one that shrinks would shift all that follows.
                let copied = io::copy(&mut io::Read::take(file, length), &mut self.to)?;
                if copied < length {
                    let path = String::from_utf8_lossy(path);
                    return Err(io::Error::other(format!("{path} became shorter while it was packed")));
                }
                length
            }
        };
        self.written += size;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.written += padding;
        self.to.write_all(&[0; 4][..padding as usize])
    }
}

/// A guest path as the archive has it: relative to the root, without `.`, `..` and doubled slashes.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

fn join(directory: &[u8], name: &OsStr) -> Vec<u8> {
    if directory.is_empty() { name.as_bytes().to_vec() } else { [directory, b"/", name.as_bytes()].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, contents.
    type Unpacked = Vec<(String, u32, Vec<u8>)>;

    /// A reader of the format, written from its description and independent of the writer.
    fn unpack(archive: &[u8]) -> Unpacked {
        let (mut at, mut found) = (0, Vec::new());
        loop {
            let header = &archive[at..at + 110];
            assert_eq!(&header[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(data, archive.len());
                return found;
            }
            found.push((name, mode as u32, archive[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    fn pack(image: Image) -> Unpacked {
        let mut bytes = Vec::new();
        let size = image.write(&mut bytes).unwrap();
        assert_eq!(size, bytes.len() as u64);
        unpack(&bytes)
    }

    #[test]
    fn parents_come_before_their_children() {
        let mut image = Image::default();
        image.file(b"/a/b/c", b"deep".to_vec(), 0o644);
        image.file(b"a.x", Vec::new(), 0o600);
        image.directory(b"a/b", 0o700);
        let entries = pack(image);
        let names: Vec<_> = entries.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names, ["a", "a.x", "a/b", "a/b/c"]);
        assert_eq!(entries[2].1, DIRECTORY | 0o755);
        assert_eq!(entries[3], ("a/b/c".into(), REGULAR | 0o644, b"deep".to_vec()));
    }

    #[test]
    fn contents_of_every_length_are_padded() {
        let mut image = Image::default();
        for n in 0..9 {
            image.file("n".repeat(n + 1).as_bytes(), vec![n as u8; n], 0o644);
        }
        for (n, entry) in pack(image).iter().enumerate() {
            assert_eq!(entry.2, vec![n as u8; n]);
        }
    }

    #[test]
    fn a_bound_directory_keeps_modes_and_links() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/tool"), "#!").unwrap();
        fs::set_permissions(dir.path().join("sub/tool"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("sub/tool", dir.path().join("link")).unwrap();
        let mut image = Image::default();
        image.bind(dir.path(), b"/opt/data").unwrap();
        image.bind(&dir.path().join("link"), b"direct").unwrap();
        let entries = pack(image);
        let find = |name: &str| entries.iter().find(|e| e.0 == name).unwrap();
        assert_eq!(find("opt/data/sub/tool").1, REGULAR | 0o4750);
        assert_eq!(find("opt/data/link").2, b"sub/tool");
        assert_eq!(find("direct").1, REGULAR | 0o4750);
    }

    #[test]
    fn a_directory_can_be_the_root_and_a_file_cannot() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "x").unwrap();
        let mut image = Image::default();
        image.bind(dir.path(), b"/").unwrap();
        assert_eq!(pack(image)[0].0, "f");
        assert!(Image::default().bind(&dir.path().join("f"), b"/").is_err());
        let missing = Image::default().bind(&dir.path().join("none"), b"x").unwrap_err();
        assert!(format!("{missing:#}").starts_with("cannot pack "));
    }

    #[test]
    fn the_skeleton_replaces_nothing() {
        let mut image = Image::default();
        image.file(b"etc/passwd", b"mine".to_vec(), 0o600);
        image.directory(b"tmp", 0o700);
        image.skeleton();
        let entries = pack(image);
        assert!(entries.contains(&("etc/passwd".into(), REGULAR | 0o600, b"mine".to_vec())));
        assert!(entries.contains(&("tmp".into(), DIRECTORY | 0o700, Vec::new())));
        assert!(entries.contains(&("dev".into(), DIRECTORY | 0o755, Vec::new())));
    }

    #[test]
    fn the_exec_entry_lists_arguments_and_environment() {
        let mut image = Image::default();
        image.exec(&Exec {
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), Vec::new()],
            env: vec![b"A=1".to_vec()],
            cwd: b"/".to_vec(),
            path: b"/bin/sh".to_vec(),
        });
        let entries = pack(image);
        assert_eq!(entries[1].0, ".quire/exec");
        assert_eq!(entries[1].2, b"3\0sh\0-c\0\x001\0A=1\0/\0/bin/sh\0");
    }

    #[test]
    fn links_lead_where_they_point() {
        let mut image = Image::default();
        image.file(b"usr/lib/x86/ld.so", Vec::new(), 0o755);
        image.symlink(b"lib64", b"usr/lib64");
        image.symlink(b"usr/lib64", b"lib");
        image.symlink(b"usr/lib/ld", b"/lib64/x86/../x86/ld.so");
        image.symlink(b"a", b"b");
        image.symlink(b"b", b"a");
        for path in ["/lib64", "/lib64/x86/ld.so", "/lib64/ld", "usr/lib/ld"] {
            assert!(image.leads_somewhere(path.as_bytes()), "{path}");
        }
        for path in ["/a", "/a/x", "/lib64/none", "/lib64/ld/x", "/none"] {
            assert!(!image.leads_somewhere(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn guest_paths_cannot_leave_the_root() {
        assert_eq!(clean(b"/../a//./b/../c/"), b"a/c");
        assert_eq!(clean(b"/"), b"");
    }
}
