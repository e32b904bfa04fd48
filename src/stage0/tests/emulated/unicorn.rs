//! The few functions of the Unicorn CPU emulator (libunicorn 2.1) that the tests call. `tests/testbed/setup` puts the library into
//! the build cache.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// An emulated processor; see `uc_open`.
pub type Handle = *mut c_void;

/// Register numbers of `x86.h`.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Register {
    Cs = 11,
    Ds = 17,
    Rax = 35,
    Rcx = 38,
    Rdx = 40,
    Rip = 41,
    Rsi = 43,
    Rsp = 44,
    Idtr = 242,
    Rflags = 253,
}

const ARCH_X86: c_int = 4;
const MODE_64: c_int = 1 << 3;
const PROT_ALL: u32 = 7;
const HOOK_EXCEPTION: c_int = 1 << 0;
const HOOK_CODE: c_int = 1 << 2;
const HOOK_MEM_READ: c_int = 1 << 10;
const HOOK_INVALID_INSTRUCTION: c_int = 1 << 14;
const HOOK_TLB_FILL: c_int = 1 << 17;
/// `uc_ctl` controls: flush the TLB; fill the TLB by a hook.
const CTL_TLB_FLUSH: u32 = 11 | 1 << 30;
const CTL_TLB_TYPE: u32 = 12 | 1 << 26 | 1 << 30;
const TLB_VIRTUAL: c_int = 1;

/// What a TLB hook fills in.
#[repr(C)]
pub struct TlbEntry {
    /// Physical address of the page.
    pub physical: u64,
    /// Permissions: all.
    pub permissions: u32,
}

/// Called at an instruction, with the address, its length and the user's pointer.
pub type CodeHook = unsafe extern "C" fn(Handle, u64, u32, *mut c_void);
/// Called for an exception, with its vector and the user's pointer.
pub type ExceptionHook = unsafe extern "C" fn(Handle, u32, *mut c_void);
/// Called for an instruction that the processor does not know; says whether to go on.
pub type InvalidHook = unsafe extern "C" fn(Handle, *mut c_void) -> bool;
/// Called for a read: kind of access, address, length, nothing, the user's pointer.
pub type ReadHook = unsafe extern "C" fn(Handle, c_int, u64, c_int, i64, *mut c_void);
/// Called for an address that is not in the TLB.
pub type TlbHook = unsafe extern "C" fn(Handle, u64, c_int, *mut TlbEntry, *mut c_void) -> bool;

/// `uc_x86_mmr`.
#[repr(C)]
#[derive(Default)]
pub struct TableRegister {
    selector: u16,
    /// Address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u32,
    flags: u32,
}

struct Library {
    open: unsafe extern "C" fn(c_int, c_int, *mut Handle) -> c_int,
    close: unsafe extern "C" fn(Handle) -> c_int,
    mem_map: unsafe extern "C" fn(Handle, u64, u64, u32) -> c_int,
    mem_read: unsafe extern "C" fn(Handle, u64, *mut c_void, u64) -> c_int,
    mem_write: unsafe extern "C" fn(Handle, u64, *const c_void, u64) -> c_int,
    reg_read: unsafe extern "C" fn(Handle, c_int, *mut c_void) -> c_int,
    reg_write: unsafe extern "C" fn(Handle, c_int, *const c_void) -> c_int,
    emu_start: unsafe extern "C" fn(Handle, u64, u64, u64, usize) -> c_int,
    emu_stop: unsafe extern "C" fn(Handle) -> c_int,
    hook_add:
        unsafe extern "C" fn(Handle, *mut usize, c_int, *mut c_void, *mut c_void, u64, u64, ...) -> c_int,
    ctl: unsafe extern "C" fn(Handle, u32, ...) -> c_int,
}

/// Where `tests/testbed/setup` puts the library.
fn path() -> PathBuf {
    let cache = std::env::var_os("CWRUN_BUILD_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            let caches = std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(home);
            caches.expect("HOME is set").join("cwrun-build")
        });
    cache.join("unicorn-2.1.4/libunicorn.so.2")
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = path();
        let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no zero byte");
        // SAFETY: the library's initialisers have no demands.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(
            !handle.is_null(),
            "the CPU emulator is not at {path:?}: run tests/testbed/setup"
        );
        // SAFETY: the library is never closed, and its header gives the functions these types.
        unsafe {
            Library {
                open: symbol(handle, c"uc_open"),
                close: symbol(handle, c"uc_close"),
                mem_map: symbol(handle, c"uc_mem_map"),
                mem_read: symbol(handle, c"uc_mem_read"),
                mem_write: symbol(handle, c"uc_mem_write"),
                reg_read: symbol(handle, c"uc_reg_read"),
                reg_write: symbol(handle, c"uc_reg_write"),
                emu_start: symbol(handle, c"uc_emu_start"),
                emu_stop: symbol(handle, c"uc_emu_stop"),
                hook_add: symbol(handle, c"uc_hook_add"),
                ctl: symbol(handle, c"uc_ctl"),
            }
        }
    })
}

/// # Safety
/// `F` is the function pointer type of the symbol.
unsafe fn symbol<F: Copy>(handle: *mut c_void, name: &CStr) -> F {
    let name: *const c_char = name.as_ptr();
    // SAFETY: the handle is an open library's.
    let address = unsafe { libc::dlsym(handle, name) };
    assert!(!address.is_null());
    assert_eq!(size_of::<F>(), size_of_val(&address));
    // SAFETY: a function pointer is an address, and the caller knows its type.
    unsafe { std::mem::transmute_copy(&address) }
}

/// The library's processors disturb each other in rare cases if several threads run them: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A processor in 64-bit mode whose address translation is a hook's.
pub struct Processor(
    Handle,
    #[expect(dead_code, reason = "held while the processor lives")] MutexGuard<'static, ()>,
);

impl Processor {
    pub fn new() -> Self {
        // A test that failed has poisoned nothing that another uses.
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        check("uc_open", unsafe {
            (library().open)(ARCH_X86, MODE_64, &mut handle)
        });
        // SAFETY: the handle is open; this control takes one int.
        check("uc_ctl", unsafe {
            (library().ctl)(handle, CTL_TLB_TYPE, TLB_VIRTUAL)
        });
        Processor(handle, alone)
    }

    /// Gives it zeroed physical memory.
    pub fn map(&self, physical: u64, len: u64) {
        // SAFETY: the handle is open.
        check("uc_mem_map", unsafe {
            (library().mem_map)(self.0, physical, len, PROT_ALL)
        });
    }

    pub fn read(&self, physical: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: the buffer has `len` bytes.
        check("uc_mem_read", unsafe {
            (library().mem_read)(self.0, physical, bytes.as_mut_ptr().cast(), len as u64)
        });
        bytes
    }

    pub fn read_u64(&self, physical: u64) -> u64 {
        u64::from_le_bytes(self.read(physical, 8).try_into().expect("8 bytes"))
    }

    pub fn write(&self, physical: u64, bytes: &[u8]) {
        // SAFETY: the buffer has as many bytes as the call says.
        check("uc_mem_write", unsafe {
            (library().mem_write)(self.0, physical, bytes.as_ptr().cast(), bytes.len() as u64)
        });
    }

    pub fn register(&self, register: Register) -> u64 {
        let mut value = 0u64;
        // SAFETY: none of the registers read this way is longer than 8 bytes.
        check("uc_reg_read", unsafe {
            (library().reg_read)(self.0, register as c_int, (&raw mut value).cast())
        });
        value
    }

    /// The interrupt descriptor table.
    pub fn interrupts(&self) -> TableRegister {
        let mut value = TableRegister::default();
        // SAFETY: the library writes a `uc_x86_mmr`.
        check("uc_reg_read", unsafe {
            (library().reg_read)(self.0, Register::Idtr as c_int, (&raw mut value).cast())
        });
        value
    }

    pub fn set(&self, register: Register, value: u64) {
        // SAFETY: none of the registers written this way is longer than 8 bytes.
        check("uc_reg_write", unsafe {
            (library().reg_write)(self.0, register as c_int, (&raw const value).cast())
        });
    }

    /// Calls `hook` with `user` before each instruction at an address from `first` to `last`.
    ///
    /// # Safety
    /// `user` is what the hook takes it for while the processor runs.
    pub unsafe fn hook_code(&self, hook: CodeHook, user: *mut c_void, first: u64, last: u64) {
        let mut id = 0;
        // SAFETY: the hook has the type that this kind asks for.
        check("uc_hook_add", unsafe {
            (library().hook_add)(self.0, &mut id, HOOK_CODE, hook as *mut c_void, user, first, last)
        });
    }

    /// Calls `hook` with `user` for each exception but unknown instructions, for which it calls `invalid`.
    ///
    /// # Safety
    /// `user` is what the hooks take it for while the processor runs.
    pub unsafe fn hook_exceptions(&self, hook: ExceptionHook, invalid: InvalidHook, user: *mut c_void) {
        for (kind, hook) in [
            (HOOK_EXCEPTION, hook as *mut c_void),
            (HOOK_INVALID_INSTRUCTION, invalid as *mut c_void),
        ] {
            let mut id = 0;
            // SAFETY: the hook has the type that this kind asks for.
            check("uc_hook_add", unsafe {
                (library().hook_add)(self.0, &mut id, kind, hook, user, 1u64, 0u64)
            });
        }
    }

    /// Calls `hook` with `user` for each read at an address from `first` to `last`.
    ///
    /// # Safety
    /// `user` is what the hook takes it for while the processor runs.
    pub unsafe fn hook_reads(&self, hook: ReadHook, user: *mut c_void, first: u64, last: u64) {
        let mut id = 0;
        // SAFETY: the hook has the type that this kind asks for.
        check("uc_hook_add", unsafe {
            (library().hook_add)(
                self.0,
                &mut id,
                HOOK_MEM_READ,
                hook as *mut c_void,
                user,
                first,
                last,
            )
        });
    }

    /// Calls `hook` with `user` for each page that is not in the TLB.
    ///
    /// # Safety
    /// `user` is what the hook takes it for while the processor runs.
    pub unsafe fn hook_tlb(&self, hook: TlbHook, user: *mut c_void) {
        let mut id = 0;
        // SAFETY: the hook has the type that this kind asks for.
        check("uc_hook_add", unsafe {
            (library().hook_add)(
                self.0,
                &mut id,
                HOOK_TLB_FILL,
                hook as *mut c_void,
                user,
                1u64,
                0u64,
            )
        });
    }

    pub fn flush_tlb(&self) {
        // SAFETY: this control takes nothing.
        check("uc_ctl", unsafe { (library().ctl)(self.0, CTL_TLB_FLUSH) });
    }

    /// Runs until a hook stops it, or for `seconds`; an error is the emulator's number.
    pub fn run(&self, from: u64, seconds: u64) -> Result<(), i32> {
        // SAFETY: the handle is open; the hooks' pointers are valid by their contract.
        match unsafe { (library().emu_start)(self.0, from, u64::MAX, seconds * 1_000_000, 0) } {
            0 => Ok(()),
            error => Err(error),
        }
    }

    pub fn stop(&self) {
        // SAFETY: the handle is open.
        check("uc_emu_stop", unsafe { (library().emu_stop)(self.0) });
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        // SAFETY: the handle is open and not used after this.
        unsafe { (library().close)(self.0) };
    }
}

fn check(what: &str, error: c_int) {
    assert_eq!(error, 0, "{what} failed");
}
