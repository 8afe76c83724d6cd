//! QEMU's plugin interface, as far as it is used, declared by hand.
//!
//! Everything is looked up by name in the running emulator, so that one that lacks something is refused with a clear
//! line, and so that the rest of the crate links and is tested without an emulator. Four functions are no part of the
//! interface: `qemu_get_cpu` and `cpu_exit`, which end a CPU's turn, `cpu_physical_memory_rw`, by which a device's register is
//! read, and `cpu_memory_rw_debug`, by which a stack is. QEMU's executable exports them for its own modules' sake.
//!
//! Version 1 of the interface is that of QEMU 7.2 (`include/qemu/qemu-plugin.h` there); 8.x still takes it. Versions 2
//! and later, of QEMU 9, replace the counting of instructions in place: see [`VERSION`].

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// The version of the interface that this file declares. To serve another one, change it together with what that
/// version changed: from 2 on `register_instruction_add` has a scoreboard in place of an address.
pub const VERSION: c_int = 1;

/// Read by QEMU before it calls `qemu_plugin_install`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // QEMU's name
pub static qemu_plugin_version: c_int = VERSION;

/// Which plugin this is.
pub type Id = u64;
/// An access to memory; opaque.
pub type Access = u32;

/// A translation block; opaque.
#[repr(C)]
pub struct Block {
    _opaque: [u8; 0],
}
/// An instruction of a block that is being translated; opaque.
#[repr(C)]
pub struct Instruction {
    _opaque: [u8; 0],
}
/// A physical address; opaque, valid in the callback that asked for it.
#[repr(C)]
pub struct Physical {
    _opaque: [u8; 0],
}
/// A virtual CPU; opaque.
#[repr(C)]
pub struct Cpu {
    _opaque: [u8; 0],
}

/// `qemu_info_t`, up to where system emulation needs it.
#[repr(C)]
pub struct Info {
    target: *const c_char,
    version_least: c_int,
    version_current: c_int,
    system_emulation: bool,
    cpus: c_int,
    cpus_most: c_int,
}

impl Info {
    /// The number of virtual CPUs; None if this isn't a whole machine of x86-64.
    pub fn cpus(&self) -> Option<u32> {
        // SAFETY: QEMU's string, which ends in 0.
        let target = unsafe { CStr::from_ptr(self.target) };
        (self.system_emulation && target == c"x86_64").then(|| u32::try_from(self.cpus).unwrap_or(0))
    }
}

/// The callback needs no registers (`QEMU_PLUGIN_CB_NO_REGS`).
pub const NO_REGISTERS: c_int = 0;
/// Loads and stores (`QEMU_PLUGIN_MEM_RW`).
pub const LOADS_AND_STORES: c_int = 3;
/// Add in place (`QEMU_PLUGIN_INLINE_ADD_U64`).
pub const ADD: c_int = 0;

/// Called with the plugin.
pub type OnPlugin = extern "C" fn(Id);
/// Called when the emulator ends.
pub type OnExit = extern "C" fn(Id, *mut c_void);
/// Called for each block that is translated.
pub type OnTranslate = extern "C" fn(Id, *mut Block);
/// Called before a block or an instruction is executed, with the CPU and what was registered.
pub type OnExecute = extern "C" fn(c_uint, *mut c_void);
/// Called after an access, with the CPU, the access, its virtual address, and what was registered.
pub type OnMemory = extern "C" fn(c_uint, Access, u64, *mut c_void);

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// QEMU's functions.
        #[derive(Clone, Copy)]
        pub struct Api {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            /// Look all of them up in this process. The name of the first that isn't there.
            pub fn find() -> Result<Self, &'static CStr> {
                $(
                    // SAFETY: a name that ends in 0.
                    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, $symbol.as_ptr()) };
                    if at.is_null() {
                        return Err($symbol);
                    }
                    // SAFETY: the symbol of that name is a function of this type, in the version declared here.
                    let $name = unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(at)
                    };
                )*
                Ok(Self { $($name),* })
            }
        }
    };
}

functions! {
    /// End the CPU's turn after the running block.
    cpu_exit = c"cpu_exit": fn(*mut Cpu);
    /// The CPU of this number.
    get_cpu = c"qemu_get_cpu": fn(c_int) -> *mut Cpu;
    /// Copy bytes from (last argument false) or to physical memory or a device.
    physical_memory = c"cpu_physical_memory_rw": fn(u64, *mut c_void, u64, bool);
    /// Copy bytes from (last argument false) or to virtual memory as the CPU's tables have it, without effect on either; 0 if
    /// all of it is mapped.
    virtual_memory = c"cpu_memory_rw_debug": fn(*mut Cpu, u64, *mut c_void, u64, bool) -> c_int;
    /// Forget all translations and callbacks when no CPU runs, then call.
    reset = c"qemu_plugin_reset": fn(Id, OnPlugin);
    /// Call when the emulator ends.
    register_exit = c"qemu_plugin_register_atexit_cb": fn(Id, OnExit, *mut c_void);
    /// Call for each block that is translated.
    register_translate = c"qemu_plugin_register_vcpu_tb_trans_cb": fn(Id, OnTranslate);
    /// Call before each execution of the block.
    register_block = c"qemu_plugin_register_vcpu_tb_exec_cb": fn(*mut Block, OnExecute, c_int, *mut c_void);
    /// Call before each execution of the instruction.
    register_instruction = c"qemu_plugin_register_vcpu_insn_exec_cb":
        fn(*mut Instruction, OnExecute, c_int, *mut c_void);
    /// Add to a 64-bit word before each execution of the instruction.
    register_instruction_add = c"qemu_plugin_register_vcpu_insn_exec_inline":
        fn(*mut Instruction, c_int, *mut c_void, u64);
    /// Call after each of the instruction's accesses.
    register_memory = c"qemu_plugin_register_vcpu_mem_cb":
        fn(*mut Instruction, OnMemory, c_int, c_int, *mut c_void);
    /// How many instructions the block has.
    block_instructions = c"qemu_plugin_tb_n_insns": fn(*const Block) -> usize;
    /// One of them.
    block_instruction = c"qemu_plugin_tb_get_insn": fn(*const Block, usize) -> *mut Instruction;
    /// Its bytes.
    instruction_bytes = c"qemu_plugin_insn_data": fn(*const Instruction) -> *const c_void;
    /// How many.
    instruction_size = c"qemu_plugin_insn_size": fn(*const Instruction) -> usize;
    /// Its virtual address.
    instruction_address = c"qemu_plugin_insn_vaddr": fn(*const Instruction) -> u64;
    /// log2 of the access's bytes.
    access_size_shift = c"qemu_plugin_mem_size_shift": fn(Access) -> c_uint;
    /// Whether it is a store.
    access_is_store = c"qemu_plugin_mem_is_store": fn(Access) -> bool;
    /// Where an access at this virtual address went; null if that is not known.
    physical = c"qemu_plugin_get_hwaddr": fn(Access, u64) -> *mut Physical;
    /// Whether that is a device.
    physical_is_device = c"qemu_plugin_hwaddr_is_io": fn(*const Physical) -> bool;
    /// Its number: of RAM the offset in QEMU's RAM, of a device the physical address.
    physical_address = c"qemu_plugin_hwaddr_phys_addr": fn(*const Physical) -> u64;
}
