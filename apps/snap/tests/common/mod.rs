//! A disk in memory that fills up, is slow, forgets what was not made durable, and has its bytes changed.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use snap::{Disk, Sink, Source};

/// What was asked of the disk, in order. Files have numbers, which names point to.
#[derive(Clone, Debug)]
pub enum Step {
    Create(String, usize),
    Append(usize, Vec<u8>),
    SyncFile(usize),
    Rename(String, String),
    Remove(String),
    Sync,
}

#[derive(Default)]
pub struct State {
    pub names: BTreeMap<String, usize>,
    pub files: Vec<Vec<u8>>,
    pub log: Vec<Step>,
    /// Bytes of all files, at most.
    pub limit: Option<usize>,
    /// What an append takes.
    pub delay: Duration,
}

#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

impl MemDisk {
    pub fn of(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::default();
        for (name, bytes) in files {
            let mut state = disk.state();
            let number = state.files.len();
            state.files.push(bytes.clone());
            state.names.insert(name.clone(), number);
        }
        disk
    }
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(name, &number)| (name.clone(), state.files[number].clone())).collect()
    }
    pub fn steps(&self) -> usize {
        self.state().log.len()
    }
}

struct MemFile(MemDisk, usize);

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MemDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn Sink>> {
        let mut state = self.state();
        let number = state.files.len();
        state.files.push(Vec::new());
        state.names.insert(name.to_owned(), number);
        state.log.push(Step::Create(name.to_owned(), number));
        Ok(Box::new(MemFile(self.clone(), number)))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn Source>> {
        let number = *self.state().names.get(name).ok_or_else(missing)?;
        Ok(Box::new(MemFile(self.clone(), number)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let number = state.names.remove(from).ok_or_else(missing)?;
        state.names.insert(to.to_owned(), number);
        state.log.push(Step::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.names.remove(name).ok_or_else(missing)?;
        state.log.push(Step::Remove(name.to_owned()));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.state().log.push(Step::Sync);
        Ok(())
    }
}

impl Sink for MemFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let delay = self.0.state().delay;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let mut state = self.0.state();
        let used: usize = state.names.values().map(|&number| state.files[number].len()).sum();
        if state.limit.is_some_and(|limit| used + bytes.len() > limit) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.files[self.1].extend(bytes);
        state.log.push(Step::Append(self.1, bytes.to_vec()));
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.state().log.push(Step::SyncFile(self.1));
        Ok(())
    }
}

impl Source for MemFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.state().files[self.1].len() as u64)
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let state = self.0.state();
        let bytes = state.files[self.1].get(offset as usize..offset as usize + to.len());
        to.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
