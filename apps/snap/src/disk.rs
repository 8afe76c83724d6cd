//! Where images are: a folder; or what a test has in its place, to cut writes short, fill up, and lose power.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::error::{Error, io};

/// A place for files.
pub trait Disk: Send + Sync {
    /// The names of all files.
    ///
    /// # Errors
    /// What the system answered; so for all below.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new, empty file, in the place of one that may be there.
    ///
    /// # Errors
    /// See above.
    fn create(&self, name: &str) -> io::Result<Box<dyn Sink>>;
    /// A file to read.
    ///
    /// # Errors
    /// See above.
    fn open(&self, name: &str) -> io::Result<Box<dyn Source>>;
    /// Give a file another name, in the place of one that may be there, as one step.
    ///
    /// # Errors
    /// See above.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Remove a file.
    ///
    /// # Errors
    /// See above.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Make all names durable.
    ///
    /// # Errors
    /// See above.
    fn sync(&self) -> io::Result<()>;
}

/// A file that is being written.
pub trait Sink: Send {
    /// Append bytes.
    ///
    /// # Errors
    /// What the system answered.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Make durable what was appended.
    ///
    /// # Errors
    /// What the system answered.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is read.
pub trait Source: Send {
    /// Its length in bytes.
    ///
    /// # Errors
    /// What the system answered.
    fn length(&self) -> io::Result<u64>;
    /// Fill `to` with the bytes from `offset`.
    ///
    /// # Errors
    /// What the system answered; `UnexpectedEof` if there are not as many.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;
}

/// A folder of the system's, which no other process has open at the same time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Locked as long as this lives, by this process.
    lock: Option<(File, u32)>,
}

/// The lock is given up by name: a process that another thread has just forked has the file open too, until it runs another
/// program, and would keep the lock for so long. A child's copy is not the child's to give up.
impl Drop for Folder {
    fn drop(&mut self) {
        if let Some((lock, owner)) = &self.lock
            && *owner == std::process::id()
        {
            // The end of the file would do it, a little later.
            let _ = lock.unlock();
        }
    }
}

/// The file that is locked.
const LOCK: &str = "lock";

impl Folder {
    /// The folder at `path`, made if there is none, for this process alone.
    ///
    /// # Errors
    /// [`Error::InUse`] or [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let what = format!("cannot use the folder {}", path.display());
        std::fs::create_dir_all(&path).map_err(io(&what))?;
        let lock = OpenOptions::new().create(true).append(true).open(path.join(LOCK)).map_err(io(&what))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock: Some((lock, std::process::id())) }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { folder: path.display().to_string() }),
            Err(TryLockError::Error(error)) => Err(io(what)(error)),
        }
    }

    /// The folder at `path`, to read images that another process may be adding to.
    pub fn peek(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), lock: None }
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(File::create(self.path.join(name))?))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn Source>> {
        Ok(Box::new(File::open(self.path.join(name))?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(self, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(to, offset)
    }
}
