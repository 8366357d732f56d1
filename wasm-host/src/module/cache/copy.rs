//! A copy of native code that nobody changes any more.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write},
};

use crate::engine::Engine;

/// Read, checked and copied at a time: small enough to stay in the processor's cache meanwhile.
const CHUNK: usize = 128 << 10;

/// Native code, in the form in which loading it costs least.
pub(super) enum Copied {
    /// In a file of its own, in memory, sealed: to be mapped as it is.
    #[cfg(target_os = "linux")]
    Sealed(File),
    /// To be copied again.
    Bytes(Vec<u8>),
}

impl Copied {
    /// Reads `length` bytes of code, and tells their CRC-32.
    pub(super) fn read(file: &mut File, length: u64) -> io::Result<(Self, u32)> {
        #[cfg(target_os = "linux")]
        if let Some(mut target) = sealed::create(length) {
            let start = file.stream_position()?;
            let checksum = copy(file, length, &mut target)?;
            if sealed::seal(&target).is_ok() {
                return Ok((Self::Sealed(target), checksum));
            }
            // Sandboxes may let us have such files and not let us seal them: whoever finds it could change it.
            file.seek(SeekFrom::Start(start))?;
        }
        Self::read_bytes(file, length)
    }

    /// The same where there are no such files.
    fn read_bytes(file: &mut File, length: u64) -> io::Result<(Self, u32)> {
        let mut bytes = Vec::new();
        let checksum = copy(file, length, &mut bytes)?;
        Ok((Self::Bytes(bytes), checksum))
    }

    #[expect(
        unsafe_code,
        reason = "the only way to load native code, which is what the cache is for"
    )]
    pub(super) fn deserialize(self, engine: &Engine) -> wasmtime::Result<wasmtime::Module> {
        // SAFETY: both want what `Module::serialize` returned. `load_cached`, the only caller, has seen that it is for this
        // engine, that its checksum is the one that `save` wrote with it, and that nobody but the owner of the directory, under
        // whom we run, can have written either. The file wants to stay as it is while the module lives: it is in no
        // directory, and sealed against writing, cutting off and unsealing.
        match self {
            #[cfg(target_os = "linux")]
            Self::Sealed(file) => unsafe {
                wasmtime::Module::deserialize_open_file(engine.wasmtime(), file)
            },
            Self::Bytes(bytes) => unsafe {
                wasmtime::Module::deserialize(engine.wasmtime(), bytes)
            },
        }
    }
}

fn copy(file: &mut File, length: u64, target: &mut impl Write) -> io::Result<u32> {
    let mut checksum = crc32fast::Hasher::new();
    let mut chunk = vec![0; CHUNK];
    let mut rest = length;
    while rest > 0 {
        let most = usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK);
        let Some(part) = chunk.get_mut(..most) else { break };
        file.read_exact(part)?;
        checksum.update(part);
        target.write_all(part)?;
        rest -= most as u64;
    }
    Ok(checksum.finalize())
}

#[cfg(target_os = "linux")]
mod sealed {
    use std::{fs::File, io};

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    /// `None` where the system has no such files, or does not let us have one: then there is the other way.
    pub(super) fn create(length: u64) -> Option<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("leno-plugin-code", flags).ok()?;
        ftruncate(&file, length).ok()?;
        Some(file.into())
    }

    pub(super) fn seal(file: &File) -> io::Result<()> {
        let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        Ok(fcntl_add_seals(file, all)?)
    }
}
