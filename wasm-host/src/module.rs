//! A compiled module: what it is, what it exports, and whether it can be a plugin at all.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use sha2::{Digest as _, Sha256};

use crate::{abi::AbiVersion, engine::Engine};

pub use self::cache::CacheError;

mod cache;

/// Native code of a plugin's module. Cheap to clone.
#[derive(Clone)]
pub struct Module(Arc<Inner>);

/// A module that is only kept by those who use it.
#[derive(Clone)]
pub struct WeakModule(Weak<Inner>);

struct Inner {
    engine: Engine,
    module: wasmtime::Module,
    digest: Digest,
    abi: AbiVersion,
    allocator: &'static str,
}

/// The SHA-256 of a module's bytes: its identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// Why bytes cannot be a plugin. What is said here is for the one who built the module.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The module has more bytes than the engine allows.
    #[error("the module has {bytes} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// Bytes that it has.
        bytes: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// The bytes are no valid WebAssembly, or use what this engine does not offer.
    #[error("not a valid WebAssembly module: {0}")]
    Invalid(String),
    /// No export says which version of the ABI it was built for.
    #[error(
        "no Proxy-Wasm plugin: none of the exports `proxy_abi_version_0_1_0`, `proxy_abi_version_0_2_0` \
         and `proxy_abi_version_0_2_1` is there"
    )]
    NoAbiVersion,
    /// It does not export its memory.
    #[error("the export `memory` is missing")]
    NoMemory,
    /// It does not export a function that allocates memory for the host.
    #[error("an allocator is missing: export `malloc` or `proxy_on_memory_allocate`")]
    NoAllocator,
    /// It wants functions that no host has, or with another signature.
    #[error("cannot be linked: {0}")]
    Import(String),
    /// An export that the host calls has another signature than the ABI says.
    #[error("the export `{name}` has another signature than the ABI: {reason}")]
    Export {
        /// The name of the export.
        name: &'static str,
        /// What differs.
        reason: String,
    },
}

/// Exports that allocate memory for the host. C++ and AssemblyScript have the first, Rust and Go the second.
const ALLOCATORS: [&str; 2] = ["malloc", "proxy_on_memory_allocate"];

/// What a module begins with, WebAssembly 1.0 section 5.5.16.
const MAGIC: &[u8] = b"\0asm";

impl Module {
    /// Compiles a module. Takes about a second for 3 MiB: not for a thread that serves requests.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn compile(engine: &Engine, bytes: &[u8]) -> Result<Self, LoadError> {
        let limit = engine.settings().module_bytes;
        if bytes.len() > limit {
            return Err(LoadError::TooLarge { bytes: bytes.len(), limit });
        }
        if !bytes.starts_with(MAGIC) {
            // The compiler would say so, too, in a dozen lines.
            let reason = "it does not begin with the bytes 00 61 73 6d, as modules do";
            return Err(LoadError::Invalid(reason.to_owned()));
        }
        let module = wasmtime::Module::from_binary(engine.wasmtime(), bytes)
            .map_err(|error| LoadError::Invalid(format!("{error:#}")))?;
        Self::inspect(engine, module, Digest::of(bytes))
    }

    fn inspect(
        engine: &Engine,
        module: wasmtime::Module,
        digest: Digest,
    ) -> Result<Self, LoadError> {
        let exports = |name: &str| module.get_export(name);
        let abi = AbiVersion::MARKERS
            .into_iter()
            .find(|(marker, _)| exports(marker).is_some_and(|export| export.func().is_some()))
            .map(|(_, version)| version)
            .ok_or(LoadError::NoAbiVersion)?;
        if exports("memory").is_none_or(|export| export.memory().is_none()) {
            return Err(LoadError::NoMemory);
        }
        let allocator = ALLOCATORS
            .into_iter()
            .find(|name| exports(name).is_some_and(|export| export.func().is_some()))
            .ok_or(LoadError::NoAllocator)?;
        Ok(Self(Arc::new(Inner { engine: engine.clone(), module, digest, abi, allocator })))
    }

    /// The SHA-256 of the module's bytes.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The same, for a list of modules that does not keep them.
    pub fn downgrade(&self) -> WeakModule {
        WeakModule(Arc::downgrade(&self.0))
    }

    /// The version of the ABI that it was built for.
    pub fn abi(&self) -> AbiVersion {
        self.0.abi
    }

    /// Which exports it has, for people who ask what a module does.
    pub fn exports(&self) -> impl Iterator<Item = &str> {
        self.0.module.exports().map(|export| export.name())
    }

    /// Which functions it wants, for hosts that do nothing for what a module cannot use.
    pub fn imports(&self) -> impl Iterator<Item = &str> {
        self.0.module.imports().map(|import| import.name())
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Module {
        &self.0.module
    }

    pub(crate) fn allocator(&self) -> &'static str {
        self.0.allocator
    }
}

impl WeakModule {
    /// The module, if anybody still has it.
    pub fn upgrade(&self) -> Option<Module> {
        self.0.upgrade().map(Module)
    }
}

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest that is known.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut digest = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, digits) in digest.iter_mut().zip(text.chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
        }
        Some(Self(digest))
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{self}")
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Module")
            .field("digest", &self.0.digest)
            .field("abi", &self.0.abi)
            .finish_non_exhaustive()
    }
}
