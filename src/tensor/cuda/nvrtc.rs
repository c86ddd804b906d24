//! NVRTC, NVIDIA's run-time compiler, loaded when it is needed.
//!
//! Own bindings (thirteen C functions), because the compiler must be found where the user has it, a missing library or function must be an
//! error and not a panic, and the compiler's log is wanted after a success too.

use crate::tensor::cuda::module::Compiled;
use crate::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

type Program = *mut c_void;
type Status = c_int;

/// The functions used; `nvrtc.h` documents them. They keep working for as long as the library is loaded.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    num_architectures: unsafe extern "C" fn(*mut c_int) -> Status,
    architectures: unsafe extern "C" fn(*mut c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// The compiler.
pub struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    path: PathBuf,
    _builtins: Option<Library>,
    _library: Library,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NVRTC {}.{} ({})", self.version.0, self.version.1, self.path.display())
    }
}

impl Nvrtc {
    /// Loads the compiler: from `SORFT_NVRTC_PATH` (the library or its folder) if that is set, else by the system's search path, else from
    /// `CUDA_HOME`, `CUDA_PATH` and `/usr/local/cuda`. `major`: the CUDA version wanted, which is tried before older ones.
    ///
    /// # Errors
    /// If there is none, or what there is cannot be used.
    pub fn load(major: Option<u32>) -> Result<Self> {
        let candidates = candidates(major);
        for candidate in &candidates {
            // An absolute path that is not there is not worth the loader's message.
            if candidate.is_absolute() && !candidate.exists() {
                continue;
            }
            let builtins = load_builtins(candidate);
            // SAFETY: NVRTC's initialisers only set up the compiler.
            if let Ok(library) = unsafe { Library::new(candidate) } {
                return Self::bind(library, builtins, candidate.clone());
            }
        }
        let hint =
            "install it (`pip install nvidia-cuda-nvrtc`, or the CUDA toolkit) and point SORFT_NVRTC_PATH at the folder of libnvrtc.so";
        Err(match std::env::var_os("SORFT_NVRTC_PATH") {
            Some(path) => {
                Error::device("libnvrtc cannot be loaded from there").at(format_args!("SORFT_NVRTC_PATH={}", path.to_string_lossy()))
            }
            None => Error::device("NVRTC, the compiler for the CUDA kernels, was not found"),
        }
        .hint(hint))
    }

    fn bind(library: Library, builtins: Option<Library>, path: PathBuf) -> Result<Self> {
        // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.2.
        let functions = unsafe {
            Functions {
                version: symbol(&library, &path, "nvrtcVersion")?,
                num_architectures: symbol(&library, &path, "nvrtcGetNumSupportedArchs")?,
                architectures: symbol(&library, &path, "nvrtcGetSupportedArchs")?,
                error_string: symbol(&library, &path, "nvrtcGetErrorString")?,
                create: symbol(&library, &path, "nvrtcCreateProgram")?,
                destroy: symbol(&library, &path, "nvrtcDestroyProgram")?,
                compile: symbol(&library, &path, "nvrtcCompileProgram")?,
                log_size: symbol(&library, &path, "nvrtcGetProgramLogSize")?,
                log: symbol(&library, &path, "nvrtcGetProgramLog")?,
                cubin_size: symbol(&library, &path, "nvrtcGetCUBINSize")?,
                cubin: symbol(&library, &path, "nvrtcGetCUBIN")?,
                ptx_size: symbol(&library, &path, "nvrtcGetPTXSize")?,
                ptx: symbol(&library, &path, "nvrtcGetPTX")?,
            }
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two valid pointers.
        let status = unsafe { (functions.version)(&mut major, &mut minor) };
        let nvrtc = Self { functions, version: (major as u32, minor as u32), path, _builtins: builtins, _library: library };
        nvrtc.check(status, "nvrtcVersion")?;
        Ok(nvrtc)
    }

    /// Its CUDA version, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// What was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles a source to a CUBIN by way of PTX, with its headers given in memory.
    pub(super) fn compile(&self, file: &str, text: &str, headers: &[(&str, &str)], options: &[String]) -> Result<Compiled> {
        self.check_architecture(options).map_err(|e| e.at(file))?;
        let (file_c, text) = (c_string(file)?, c_string(text)?);
        let names = headers.iter().map(|h| c_string(h.0)).collect::<Result<Vec<_>>>()?;
        let texts = headers.iter().map(|h| c_string(h.1)).collect::<Result<Vec<_>>>()?;
        let options = options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names_p, texts_p, options_p) = (pointers(&names), pointers(&texts), pointers(&options));

        let mut program = Handle { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: all strings end in a zero and outlive the call; the arrays have as many entries as is said.
        let status = unsafe {
            let (count, texts, names) = (headers.len() as c_int, texts_p.as_ptr(), names_p.as_ptr());
            (self.functions.create)(&mut program.program, text.as_ptr(), file_c.as_ptr(), count, texts, names)
        };
        self.check(status, "nvrtcCreateProgram")?;
        // SAFETY: the program was created above; as before for the strings.
        let status = unsafe { (self.functions.compile)(program.program, options_p.len() as c_int, options_p.as_ptr()) };
        let log = program.bytes("log", self.functions.log_size, self.functions.log)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
        let log = text(log);
        self.check(status, "nvrtcCompileProgram").map_err(|e| e.hint(log.clone()).at(format_args!("kernels/{file}")))?;
        let cubin = program.bytes("CUBIN", self.functions.cubin_size, self.functions.cubin)?;
        let ptx = text(program.bytes("PTX", self.functions.ptx_size, self.functions.ptx)?);
        Ok(Compiled { cubin, ptx, log })
    }

    fn check_architecture(&self, options: &[String]) -> Result<()> {
        let wanted = options.iter().find_map(|o| o.strip_prefix("--gpu-architecture=sm_")).unwrap_or_default();
        let number = wanted.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<c_int>().unwrap_or(0);
        let mut count = 0;
        // SAFETY: a valid pointer.
        self.check(unsafe { (self.functions.num_architectures)(&mut count) }, "nvrtcGetNumSupportedArchs")?;
        let mut known = vec![0 as c_int; count.max(0) as usize];
        // SAFETY: room for as many numbers as the compiler has just said.
        self.check(unsafe { (self.functions.architectures)(known.as_mut_ptr()) }, "nvrtcGetSupportedArchs")?;
        if known.contains(&number) {
            return Ok(());
        }
        let (major, minor) = self.version;
        Err(Error::device(format!("NVRTC {major}.{minor} cannot compile for sm_{wanted}; it knows {known:?}"))
            .hint("point SORFT_NVRTC_PATH at an NVRTC that knows this device"))
    }

    fn check(&self, status: Status, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: returns a string constant for any number.
        let text = unsafe { CStr::from_ptr((self.functions.error_string)(status)) };
        Err(Error::device(format!("{what}: {}", text.to_string_lossy())))
    }
}

/// A program, destroyed when dropped.
struct Handle<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Handle<'_> {
    /// One of the results that come as a size and bytes.
    fn bytes(
        &self,
        what: &str,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>> {
        let mut len = 0;
        // SAFETY: the program is alive, the pointer valid.
        self.nvrtc.check(unsafe { size(self.program, &mut len) }, what)?;
        let mut bytes = vec![0u8; len];
        // SAFETY: room for as many bytes as the compiler has just said.
        self.nvrtc.check(unsafe { fill(self.program, bytes.as_mut_ptr().cast()) }, what)?;
        Ok(bytes)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by this library and not destroyed yet.
            unsafe { (self.nvrtc.functions.destroy)(&mut self.program) };
        }
    }
}

/// # Safety
/// `T` is the type of that function.
unsafe fn symbol<T: Copy>(library: &Library, path: &Path, name: &str) -> Result<T> {
    // SAFETY: passed on to the caller.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found
        .map(|s| *s)
        .map_err(|_| Error::device(format!("this NVRTC has no {name}: it is too old")).at_file(path).hint("NVRTC 11.2 or later is needed"))
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::device("a zero byte in a kernel source"))
}

/// What to try to load, in order.
fn candidates(major: Option<u32>) -> Vec<PathBuf> {
    const NEWEST: u32 = 13;
    let majors = (11..=major.unwrap_or(NEWEST)).rev();
    let names: Vec<String> = majors.map(|m| format!("libnvrtc.so.{m}")).chain(["libnvrtc.so".to_owned()]).collect();
    let within = |folder: &Path| names.iter().map(|n| folder.join(n)).collect::<Vec<_>>();
    if let Some(path) = std::env::var_os("SORFT_NVRTC_PATH").map(PathBuf::from) {
        return if path.is_dir() { within(&path) } else { vec![path] };
    }
    let homes =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    names.iter().map(PathBuf::from).chain(homes.flat_map(|home| within(&home.join("lib64")))).collect()
}

/// NVRTC opens its second library by bare name, which the loader finds only on its search path or when it is loaded already.
fn load_builtins(nvrtc: &Path) -> Option<Library> {
    let folder = nvrtc.parent().filter(|f| f.is_absolute())?;
    let names = std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path()));
    let mut files: Vec<PathBuf> =
        names.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc-builtins.so"))).collect();
    files.sort();
    // SAFETY: a library of data for NVRTC.
    files.iter().find_map(|f| unsafe { Library::new(f) }.ok())
}
