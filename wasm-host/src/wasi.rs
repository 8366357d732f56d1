//! As much of WASI (`wasi_snapshot_preview1`, and under its older name `wasi_unstable`) as the SDKs of
//! plugins import: log by writing to standard output, clocks, randomness, environment. There are no files,
//! no arguments and no network.

use wasmtime::{Caller, FuncType, Linker, Val, ValType};

use crate::{
    abi::{LogLevel, Status},
    embedder::Host,
    fault::Exit,
    guest::{GuestPtr, GuestSlice, read_u32},
    host_functions::{any_parts, write_line},
    state::State,
};

/// The module names under which guests import these.
pub(crate) const MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// `errno` of WASI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Errno {
    Success = 0,
    BadFile = 8,
    Fault = 21,
    Invalid = 28,
    NoEntry = 44,
    NotSupported = 52,
    UnknownClock = 58,
    /// What a function answers that the plugin was not allowed.
    NotCapable = 76,
}

impl From<Status> for Errno {
    fn from(_: Status) -> Self {
        Self::Fault
    }
}

/// Bytes that `random_get` gives at once; that is also what other hosts give.
const RANDOM_BYTES: u32 = 65_536;
/// Vectors of one write: `IOV_MAX` of Linux.
const VECTORS: u32 = 1_024;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// Functions that answer the same in every case, with their parameters (`i`: i32, `I`: i64). They are all
/// about files and sockets; the answers are those that plugins find elsewhere.
const CONSTANT: &[(&str, &str, Errno)] = &[
    ("fd_advise", "iIIi", Errno::NotSupported),
    ("fd_allocate", "iII", Errno::NotSupported),
    ("fd_close", "i", Errno::Success),
    ("fd_datasync", "i", Errno::NotSupported),
    ("fd_fdstat_set_flags", "ii", Errno::NotSupported),
    ("fd_fdstat_set_rights", "iII", Errno::NotSupported),
    ("fd_filestat_get", "ii", Errno::NotSupported),
    ("fd_filestat_set_size", "iI", Errno::NotSupported),
    ("fd_filestat_set_times", "iIIi", Errno::NotSupported),
    ("fd_pread", "iiiIi", Errno::NotSupported),
    ("fd_prestat_dir_name", "iii", Errno::NotSupported),
    ("fd_prestat_get", "ii", Errno::BadFile),
    ("fd_pwrite", "iiiIi", Errno::NotSupported),
    ("fd_read", "iiii", Errno::NotSupported),
    ("fd_readdir", "iiiIi", Errno::NotSupported),
    ("fd_renumber", "ii", Errno::NotSupported),
    ("fd_seek", "iIii", Errno::Success),
    ("fd_sync", "i", Errno::NotSupported),
    ("fd_tell", "ii", Errno::NotSupported),
    ("path_create_directory", "iii", Errno::NotSupported),
    ("path_filestat_get", "iiiii", Errno::NotSupported),
    ("path_filestat_set_times", "iiiiIIi", Errno::NotSupported),
    ("path_link", "iiiiiii", Errno::NotSupported),
    ("path_open", "iiiiiIIii", Errno::NoEntry),
    ("path_readlink", "iiiiii", Errno::NotSupported),
    ("path_remove_directory", "iii", Errno::NotSupported),
    ("path_rename", "iiiiii", Errno::NotSupported),
    ("path_symlink", "iiiii", Errno::NotSupported),
    ("path_unlink_file", "iii", Errno::NotSupported),
    ("sched_yield", "", Errno::Success),
    ("sock_accept", "iii", Errno::NotSupported),
    ("sock_recv", "iiiiii", Errno::NotSupported),
    ("sock_send", "iiiii", Errno::NotSupported),
    ("sock_shutdown", "ii", Errno::NotSupported),
];

/// Puts the functions into a linker, under both names.
pub(crate) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    for module in MODULES {
        linker
            .func_wrap(module, "fd_write", fd_write::<H>)?
            .func_wrap(module, "fd_fdstat_get", fd_fdstat_get::<H>)?
            .func_wrap(module, "clock_time_get", clock_time_get::<H>)?
            .func_wrap(module, "clock_res_get", clock_res_get::<H>)?
            .func_wrap(module, "random_get", random_get::<H>)?
            .func_wrap(module, "environ_sizes_get", environ_sizes_get::<H>)?
            .func_wrap(module, "environ_get", environ_get::<H>)?
            .func_wrap(module, "args_sizes_get", args_sizes_get::<H>)?
            .func_wrap(module, "args_get", |_: u32, _: u32| Errno::Success as u32)?
            .func_wrap(module, "poll_oneoff", poll_oneoff::<H>)?
            .func_wrap(module, "proc_exit", |code: u32| -> wasmtime::Result<()> {
                // Elsewhere it returns to the guest, which then runs into code that must not be reached.
                Err(wasmtime::Error::new(Exit(code)))
            })?;
        for (name, parameters, answer) in CONSTANT {
            link_constant(linker, module, name, parameters, *answer)?;
        }
    }
    Ok(())
}

fn link_constant<H: Host>(
    linker: &mut Linker<State<H>>,
    module: &str,
    name: &str,
    parameters: &str,
    answer: Errno,
) -> wasmtime::Result<()> {
    let parameters =
        parameters.chars().map(|kind| if kind == 'I' { ValType::I64 } else { ValType::I32 });
    let signature = FuncType::new(linker.engine(), parameters, [ValType::I32]);
    linker.func_new(module, name, signature, move |_, _, results| {
        results.fill(Val::I32(answer as i32));
        Ok(())
    })?;
    Ok(())
}

fn errno(result: Result<(), Errno>) -> u32 {
    result.err().unwrap_or(Errno::Success) as u32
}

/// Standard output is logged as information, standard error as an error, a call a line.
fn fd_write<H: Host>(
    mut caller: Caller<'_, State<H>>,
    file: u32,
    vectors: u32,
    count: u32,
    written: u32,
) -> u32 {
    let mut write = || {
        let level = match file {
            STDOUT => LogLevel::Info,
            STDERR => LogLevel::Error,
            _ => return Err(Errno::BadFile),
        };
        let (memory, state) = any_parts(&mut caller)?;
        let mut line = std::mem::take(&mut state.scratch);
        line.clear();
        let limit = state.settings.limits.log_line_bytes;
        let total = gather(memory, vectors, count, limit, &mut line);
        if total.is_ok_and(|total| total > 0) {
            write_line(state, level, line.strip_suffix(b"\n").unwrap_or(&line));
        }
        state.scratch = line;
        Ok(GuestPtr::new(written).write(memory, total?)?)
    };
    errno(write())
}

/// Collects what the vectors point at, as far as it will be logged, and tells how many bytes it all is.
fn gather(
    memory: &[u8],
    vectors: u32,
    count: u32,
    limit: usize,
    line: &mut Vec<u8>,
) -> Result<u32, Errno> {
    if count > VECTORS {
        return Err(Errno::Invalid);
    }
    let mut total = 0_u32;
    for index in 0..count {
        let vector = vectors.checked_add(index * 8).ok_or(Errno::Fault)?;
        let start = read_u32(memory, vector)?;
        let length = read_u32(memory, vector.checked_add(4).ok_or(Errno::Fault)?)?;
        let bytes = GuestSlice::new(start, length).read(memory)?;
        total = total.checked_add(length).ok_or(Errno::Invalid)?;
        let room = limit.saturating_sub(line.len()).min(bytes.len());
        line.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }
    Ok(total)
}

/// `fdstat` of something that can only be written: `filetype` 2 is a character device, right 6 is `fd_write`.
fn fd_fdstat_get<H: Host>(mut caller: Caller<'_, State<H>>, file: u32, result: u32) -> u32 {
    let mut tell = || {
        if !matches!(file, STDOUT | STDERR) {
            return Err(Errno::BadFile);
        }
        let (memory, _) = any_parts(&mut caller)?;
        let target = GuestSlice::new(result, 24).write(memory)?;
        target.fill(0);
        for (byte, value) in [(0, 2), (8, 1 << 6)] {
            if let Some(byte) = target.get_mut(byte) {
                *byte = value;
            }
        }
        Ok(())
    };
    errno(tell())
}

fn clock_time_get<H: Host>(
    mut caller: Caller<'_, State<H>>,
    clock: u32,
    _precision: u64,
    result: u32,
) -> u32 {
    let mut tell = || {
        let (memory, state) = any_parts(&mut caller)?;
        let now = match clock {
            0 => state.host.now(),
            1 => state.host.monotonic(),
            _ => return Err(Errno::UnknownClock),
        };
        Ok(GuestPtr::<u64>::new(result).write(memory, now)?)
    };
    errno(tell())
}

fn clock_res_get<H: Host>(mut caller: Caller<'_, State<H>>, clock: u32, result: u32) -> u32 {
    let mut tell = || {
        if clock > 1 {
            return Err(Errno::UnknownClock);
        }
        let (memory, _) = any_parts(&mut caller)?;
        Ok(GuestPtr::<u64>::new(result).write(memory, 1)?)
    };
    errno(tell())
}

fn random_get<H: Host>(mut caller: Caller<'_, State<H>>, target: u32, length: u32) -> u32 {
    let mut fill = || {
        if length > RANDOM_BYTES {
            return Err(Errno::Invalid);
        }
        let (memory, state) = any_parts(&mut caller)?;
        state.host.random(GuestSlice::new(target, length).write(memory)?);
        Ok(())
    };
    errno(fill())
}

fn environ_sizes_get<H: Host>(mut caller: Caller<'_, State<H>>, count: u32, bytes: u32) -> u32 {
    let mut tell = || {
        let (memory, state) = any_parts(&mut caller)?;
        let environment = &state.settings.environment;
        let length: usize = environment.iter().map(|(name, value)| line_length(name, value)).sum();
        let length = u32::try_from(length).map_err(|_| Errno::Invalid)?;
        let variables = u32::try_from(environment.len()).map_err(|_| Errno::Invalid)?;
        GuestPtr::new(count).write(memory, variables)?;
        Ok(GuestPtr::new(bytes).write(memory, length)?)
    };
    errno(tell())
}

fn environ_get<H: Host>(mut caller: Caller<'_, State<H>>, pointers: u32, bytes: u32) -> u32 {
    let mut tell = || {
        let (memory, state) = any_parts(&mut caller)?;
        let (mut pointer, mut at) = (pointers, bytes);
        for (name, value) in &state.settings.environment {
            let line = format!("{name}={value}\0");
            GuestPtr::new(pointer).write(memory, at)?;
            let length = u32::try_from(line.len()).map_err(|_| Errno::Invalid)?;
            GuestSlice::new(at, length).write(memory)?.copy_from_slice(line.as_bytes());
            pointer = pointer.checked_add(4).ok_or(Errno::Fault)?;
            at = at.checked_add(length).ok_or(Errno::Fault)?;
        }
        Ok(())
    };
    errno(tell())
}

fn line_length(name: &str, value: &str) -> usize {
    name.len() + value.len() + "=\0".len()
}

fn args_sizes_get<H: Host>(mut caller: Caller<'_, State<H>>, count: u32, bytes: u32) -> u32 {
    let mut tell = || {
        let (memory, _) = any_parts(&mut caller)?;
        GuestPtr::new(count).write(memory, 0_u32)?;
        Ok(GuestPtr::new(bytes).write(memory, 0_u32)?)
    };
    errno(tell())
}

/// Nothing ever happens, and nobody waits for it: a callback that sleeps would stop the worker.
fn poll_oneoff<H: Host>(
    mut caller: Caller<'_, State<H>>,
    _subscriptions: u32,
    _events: u32,
    _count: u32,
    happened: u32,
) -> u32 {
    let mut tell = || {
        let (memory, _) = any_parts(&mut caller)?;
        Ok(GuestPtr::new(happened).write(memory, 0_u32)?)
    };
    errno(tell())
}
