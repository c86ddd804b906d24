//! Kernel sources to machine code for one device, cached on disk.
//!
//! The sources are part of the program. NVRTC compiles one for the very device at first use; the result is kept under a name made from
//! everything it depends on, so that a new version of the program, the compiler or a header never finds an old one.

use crate::tensor::cuda::nvrtc::Nvrtc;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A kernel source file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its file under `kernels/`.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.file)
    }
}

/// What the sources include, by the names they use.
const HEADERS: [(&str, &str); 18] = [
    ("sorft.cuh", include_str!("../../../kernels/sorft.cuh")),
    ("ptx.cuh", include_str!("../../../kernels/ptx.cuh")),
    ("tile.cuh", include_str!("../../../kernels/tile.cuh")),
    ("attention.cuh", include_str!("../../../kernels/attention.cuh")),
    ("attention_bwd.cuh", include_str!("../../../kernels/attention_bwd.cuh")),
    ("attention_hopper.cuh", include_str!("../../../kernels/attention_hopper.cuh")),
    ("attention_bwd_hopper.cuh", include_str!("../../../kernels/attention_bwd_hopper.cuh")),
    ("softmax.cuh", include_str!("../../../kernels/softmax.cuh")),
    ("rmsnorm.cuh", include_str!("../../../kernels/rmsnorm.cuh")),
    ("rope.cuh", include_str!("../../../kernels/rope.cuh")),
    ("kv_pages.cuh", include_str!("../../../kernels/kv_pages.cuh")),
    ("linear.cuh", include_str!("../../../kernels/linear.cuh")),
    ("linear_hopper.cuh", include_str!("../../../kernels/linear_hopper.cuh")),
    ("row_softmax.cuh", include_str!("../../../kernels/row_softmax.cuh")),
    ("head.cuh", include_str!("../../../kernels/head.cuh")),
    ("hopper.cuh", include_str!("../../../kernels/hopper.cuh")),
    ("hopper_store.cuh", include_str!("../../../kernels/hopper_store.cuh")),
    ("hopper_cluster.cuh", include_str!("../../../kernels/hopper_cluster.cuh")),
];

impl Source {
    /// RMSNorm, forward and backward.
    pub const RMSNORM: Source = Source { file: "rmsnorm.cu", text: include_str!("../../../kernels/rmsnorm.cu") };
    /// Rotary position embedding, both ways.
    pub const ROPE: Source = Source { file: "rope.cu", text: include_str!("../../../kernels/rope.cu") };
    /// SwiGLU, forward and backward.
    pub const SWIGLU: Source = Source { file: "swiglu.cu", text: include_str!("../../../kernels/swiglu.cu") };
    /// The AdamW step.
    pub const ADAMW: Source = Source { file: "adamw.cu", text: include_str!("../../../kernels/adamw.cu") };
    /// The embedding's rows and their gradient.
    pub const EMBEDDING: Source = Source { file: "embedding.cu", text: include_str!("../../../kernels/embedding.cu") };
    /// Attention forward: training, prefill and decode.
    pub const ATTENTION: Source = Source { file: "attention.cu", text: include_str!("../../../kernels/attention.cu") };
    /// Attention forward over whole histories on Hopper, by TMA and wgmma.
    pub const ATTENTION_HOPPER: Source = Source { file: "attention_hopper.cu", text: include_str!("../../../kernels/attention_hopper.cu") };
    /// Attention backward.
    pub const ATTENTION_BWD: Source = Source { file: "attention_bwd.cu", text: include_str!("../../../kernels/attention_bwd.cu") };
    /// Attention backward in one pass on Hopper, by TMA and wgmma.
    pub const ATTENTION_BWD_HOPPER: Source =
        Source { file: "attention_bwd_hopper.cu", text: include_str!("../../../kernels/attention_bwd_hopper.cu") };
    /// Attention backward for queries on Hopper, by TMA and wgmma.
    pub const ATTENTION_BWD_Q_HOPPER: Source =
        Source { file: "attention_bwd_q_hopper.cu", text: include_str!("../../../kernels/attention_bwd_q_hopper.cu") };
    /// Attention backward for keys and values on Hopper, by TMA and wgmma.
    pub const ATTENTION_BWD_KV_HOPPER: Source =
        Source { file: "attention_bwd_kv_hopper.cu", text: include_str!("../../../kernels/attention_bwd_kv_hopper.cu") };
    /// The products of a linear layer, with a LoRA adapter.
    pub const LINEAR: Source = Source { file: "linear.cu", text: include_str!("../../../kernels/linear.cu") };
    /// The forward product for few rows.
    pub const LINEAR_FEW: Source = Source { file: "linear_few.cu", text: include_str!("../../../kernels/linear_few.cu") };
    /// The products on Hopper, by TMA and wgmma.
    pub const LINEAR_HOPPER: Source = Source { file: "linear_hopper.cu", text: include_str!("../../../kernels/linear_hopper.cu") };
    /// The sum of squares of gradients.
    pub const NORM: Source = Source { file: "norm.cu", text: include_str!("../../../kernels/norm.cu") };
    /// Keys and values into their pages.
    pub const KV_PAGES: Source = Source { file: "kv_pages.cu", text: include_str!("../../../kernels/kv_pages.cu") };
    /// What lies between the products q, k, v and attention when decoding.
    pub const QKV: Source = Source { file: "qkv.cu", text: include_str!("../../../kernels/qkv.cu") };

    /// The fused head.
    pub const HEAD: Source = Source { file: "head.cu", text: include_str!("../../../kernels/head.cu") };
    /// The fused head on Hopper, by TMA and wgmma.
    pub const HEAD_HOPPER: Source = Source { file: "head_hopper.cu", text: include_str!("../../../kernels/head_hopper.cu") };
    /// The next token of each row of logits.
    pub const SAMPLE: Source = Source { file: "sample.cu", text: include_str!("../../../kernels/sample.cu") };
    /// Sums and roundings of activations.
    pub const RESIDUAL: Source = Source { file: "residual.cu", text: include_str!("../../../kernels/residual.cu") };
    /// Every wrapper of inline assembly by itself.
    pub const CONFORMANCE: Source = Source { file: "conformance.cu", text: include_str!("../../../kernels/conformance.cu") };

    /// Every wrapper of Hopper's own instructions by itself.
    pub const CONFORMANCE_HOPPER: Source =
        Source { file: "conformance_hopper.cu", text: include_str!("../../../kernels/conformance_hopper.cu") };

    /// Every wrapper of how tiles leave a multiprocessor there, and of clusters, by itself.
    pub const CONFORMANCE_TILES: Source =
        Source { file: "conformance_tiles.cu", text: include_str!("../../../kernels/conformance_tiles.cu") };

    /// Every kernel source.
    pub const ALL: [Source; 24] = [
        Source::RMSNORM,
        Source::ROPE,
        Source::SWIGLU,
        Source::ADAMW,
        Source::EMBEDDING,
        Source::ATTENTION,
        Source::ATTENTION_HOPPER,
        Source::ATTENTION_BWD,
        Source::ATTENTION_BWD_HOPPER,
        Source::ATTENTION_BWD_Q_HOPPER,
        Source::ATTENTION_BWD_KV_HOPPER,
        Source::KV_PAGES,
        Source::QKV,
        Source::LINEAR,
        Source::LINEAR_FEW,
        Source::LINEAR_HOPPER,
        Source::NORM,
        Source::HEAD,
        Source::HEAD_HOPPER,
        Source::SAMPLE,
        Source::RESIDUAL,
        Source::CONFORMANCE,
        Source::CONFORMANCE_HOPPER,
        Source::CONFORMANCE_TILES,
    ];
}

/// Machine code of one source for one architecture.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// A CUBIN.
    pub cubin: Vec<u8>,
    /// The PTX that it was assembled from. Empty if the code came from the cache.
    pub ptx: String,
    /// What the compiler said: registers, spills and warnings of every kernel. Empty if the code came from the cache.
    pub log: String,
}

/// The architecture to compile for: the newer chips' own features need the `a` of theirs (wgmma and TMA on sm_90a).
pub(super) fn architecture((major, minor): (u32, u32)) -> String {
    let feature = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{feature}")
}

/// Compiles `source` for `architecture` (`sm_80`, `sm_90a`, ...).
///
/// # Errors
/// If the compiler does not know the architecture or refuses the source; the message holds its log.
pub fn compile(nvrtc: &Nvrtc, source: Source, architecture: &str) -> Result<Compiled> {
    nvrtc.compile(source.file, source.text, &HEADERS, &options(architecture))
}

/// No contraction into fused multiply-adds: the sources say where they want one (`kernels/sorft.cuh`). Spills and registers go to the log.
fn options(architecture: &str) -> Vec<String> {
    let arch = format!("--gpu-architecture={architecture}");
    [arch.as_str(), "--std=c++17", "--fmad=false", "--ptxas-options=-v", "--ptxas-options=-warn-spills"].map(str::to_owned).into()
}

/// The same, from the cache in `folder` where it has been compiled before. A cache that cannot be read or written costs time, nothing else.
pub(super) fn compile_cached(nvrtc: &Nvrtc, source: Source, architecture: &str, folder: Option<&Path>) -> Result<Compiled> {
    let file = folder.map(|f| f.join(format!("{}-{architecture}-{}.cubin", source.file, cache_key(nvrtc, source, architecture))));
    if let Some(cubin) = file.as_deref().and_then(read_cached) {
        return Ok(Compiled { cubin, ptx: String::new(), log: String::new() });
    }
    let compiled = compile(nvrtc, source, architecture)?;
    if let Some(file) = file {
        // A full disk or a read-only home must not stop a run that has its kernels in memory.
        let _ = write_cached(&file, &compiled.cubin);
    }
    Ok(compiled)
}

fn cache_key(nvrtc: &Nvrtc, source: Source, architecture: &str) -> String {
    let mut hash = Sha256::new();
    let (major, minor) = nvrtc.version();
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    part(&format!("nvrtc {major}.{minor}"));
    options(architecture).iter().for_each(|o| part(o));
    part(source.text);
    HEADERS.iter().for_each(|(name, text)| [name, text].into_iter().for_each(|t| part(t)));
    hex(&hash.finalize()[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A cached file is the SHA-256 of the code, then the code: what a crash or a bad disk left behind is not loaded onto a device.
fn read_cached(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (digest, cubin) = bytes.split_at_checked(32)?;
    (Sha256::digest(cubin)[..] == *digest).then(|| cubin.to_vec())
}

fn write_cached(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&Sha256::digest(cubin))?;
    temporary.write_all(cubin)?;
    temporary.persist(file)?;
    Ok(())
}

/// Where compiled kernels are kept: `$SORFT_CACHE/kernels`, else under `$XDG_CACHE_HOME`, else under `~/.cache`.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("SORFT_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("sorft-native")))
        .or_else(|| Some(set("HOME")?.join(".cache").join("sorft-native")))?;
    Some(base.join("kernels"))
}

/// The compiler for a driver of the given CUDA version (major), or the reason why there is none.
pub(super) fn compiler(driver_major: u32) -> Result<Nvrtc> {
    let nvrtc = Nvrtc::load(Some(driver_major))?;
    let (major, minor) = nvrtc.version();
    if major > driver_major {
        return Err(Error::device(format!(
            "NVRTC {major}.{minor} is newer than the driver, which runs code of CUDA {driver_major} and older"
        ))
        .hint(format!("update the driver, or point SORFT_NVRTC_PATH at libnvrtc.so.{driver_major}")));
    }
    Ok(nvrtc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_their_chip_s_own_features() {
        assert_eq!(architecture((8, 0)), "sm_80");
        assert_eq!(architecture((8, 9)), "sm_89");
        assert_eq!(architecture((9, 0)), "sm_90a");
        assert_eq!(architecture((10, 0)), "sm_100a");
    }

    #[test]
    fn a_damaged_cache_file_is_not_used() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("deep").join("k.cubin");
        assert_eq!(read_cached(&file), None);
        write_cached(&file, b"code").expect("written");
        assert_eq!(read_cached(&file).as_deref(), Some(&b"code"[..]));
        let mut bytes = std::fs::read(&file).expect("read");
        bytes.pop();
        std::fs::write(&file, &bytes).expect("written");
        assert_eq!(read_cached(&file), None);
        std::fs::write(&file, b"short").expect("written");
        assert_eq!(read_cached(&file), None);
    }

    #[test]
    fn every_source_keeps_the_rules() {
        for source in Source::ALL {
            let text = source.text;
            assert!(!text.contains("asm"), "{}: inline PTX belongs in ptx.cuh", source.file);
            assert!(!text.contains("<<<"), "{}: host code", source.file);
            assert!(!text.contains("__shared__"), "{}: shared memory by SORFT_SMEM and SORFT_DYN_SMEM", source.file);
            let includes: Vec<&str> = text.lines().filter(|l| l.trim_start().starts_with("#include")).collect();
            assert_eq!(includes[0], "#include \"sorft.cuh\"", "{}", source.file);
            let known = |l: &&str| HEADERS.iter().any(|(name, _)| **l == format!("#include \"{name}\""));
            assert!(includes.iter().all(known), "{}: only headers of kernels/", source.file);
        }
    }
}
