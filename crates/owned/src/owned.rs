//! Frames as values: whoever has one must give it back.

use core::mem;

use addr::Frame;

use crate::Use;

/// One share of a frame. It is given back by [`Memory::free`](crate::Memory::free); dropping it is a leak, which
/// debug builds refuse.
#[must_use = "a frame that is dropped is leaked"]
#[derive(Debug)]
pub struct OwnedFrame {
    frame: Frame,
    usage: Use,
}

impl OwnedFrame {
    /// The frame.
    pub fn frame(&self) -> Frame {
        self.frame
    }
    /// What it is used for.
    pub fn usage(&self) -> Use {
        self.usage
    }
    /// Give up the value but not the share: it now lives in whatever the caller writes the frame number into.
    pub fn into_raw(self) -> Frame {
        let frame = self.frame;
        mem::forget(self);
        frame
    }
    /// Take back a share that [`Self::into_raw`] let go.
    ///
    /// # Safety
    /// The caller has that share, and the frame was allocated for `usage`.
    pub unsafe fn from_raw(frame: Frame, usage: Use) -> Self {
        Self { frame, usage }
    }
}

impl Drop for OwnedFrame {
    fn drop(&mut self) {
        leaked(self.frame);
    }
}

/// 2^order adjacent frames, the first a multiple of that, with one owner. It is given back by
/// [`Memory::free_run`](crate::Memory::free_run); dropping it is a leak, which debug builds refuse.
#[must_use = "a run that is dropped is leaked"]
#[derive(Debug)]
pub struct OwnedRun {
    frame: Frame,
    order: u32,
    usage: Use,
}

impl OwnedRun {
    /// The first frame.
    pub fn frame(&self) -> Frame {
        self.frame
    }
    /// log2 of the number of frames: 0..=[`MAX_ORDER`](frames::MAX_ORDER).
    pub fn order(&self) -> u32 {
        self.order
    }
    /// What it is used for.
    pub fn usage(&self) -> Use {
        self.usage
    }
    /// Give up the value but not the frames.
    pub fn into_raw(self) -> Frame {
        let frame = self.frame;
        mem::forget(self);
        frame
    }
    /// Take back a run that [`Self::into_raw`] let go.
    ///
    /// # Safety
    /// The caller has that run, and it was allocated with `order` and for `usage`.
    pub unsafe fn from_raw(frame: Frame, order: u32, usage: Use) -> Self {
        Self { frame, order, usage }
    }
}

impl Drop for OwnedRun {
    fn drop(&mut self) {
        leaked(self.frame);
    }
}

fn leaked(frame: Frame) {
    // A test that fails drops what it holds; its own message is the one to show.
    #[cfg(feature = "testing")]
    if std::thread::panicking() {
        return;
    }
    if cfg!(debug_assertions) {
        panic!("{frame:?} leaked: an owned frame was dropped");
    }
}
