//! Memory that is not needed any more.
//!
//! What was freed: mimalloc keeps it for a second in case it is needed again, and looks whether that second is over
//! only when more is freed. A thread that has become idle keeps for ever what its busy hours needed.
//!
//! Code that has run: the kernel maps 64 KiB of the program around every page that is used, and most of what a start
//! runs (options, parsers, tables of ciphers) never runs again. It stays resident until memory is short.

use std::{fs, io, path::Path};

/// Gives back to the system what this thread has freed for longer than a second. Takes some microseconds; for a thread
/// to call now and then. Without effect where mimalloc is not the allocator.
pub fn give_back() {
    #[expect(unsafe_code, reason = "mimalloc has no safe interface for it")]
    // SAFETY: takes no pointer and may be called on any thread at any time outside of the allocator.
    unsafe {
        libmimalloc_sys::mi_collect(false);
    }
}

/// Lets go of the program's own code and constants: what is still used is mapped again from the page cache, which costs
/// a microsecond for each 64 KiB. To be called once, after the start. How many bytes were let go of.
///
/// # Errors
/// When the kernel does not say what is mapped, or refuses.
pub fn forget_start() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/smaps")?;
    let unchanged = unchanged(&maps, &program);
    for (from, length) in &unchanged {
        let from = std::ptr::without_provenance_mut(*from);
        #[expect(unsafe_code, reason = "the kernel is told about a range of addresses")]
        // SAFETY: the range is a mapping of the program's own file, which stays as long as the process, cannot be
        // written to, and of which no page differs from the file: every access finds the same bytes as before.
        let refused = unsafe { libc::madvise(from, *length, libc::MADV_DONTNEED) } != 0;
        if refused {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(unchanged.iter().map(|(_, length)| length).sum())
}

/// A line of `smaps` that begins a mapping.
struct Mapping<'a> {
    from: usize,
    length: usize,
    permissions: &'a str,
    path: &'a str,
}

/// Start and length of what is mapped of the file `program`, cannot be written to, and is everywhere as in the file.
/// What the loader has put addresses into is not: it would be lost.
fn unchanged(smaps: &str, program: &Path) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut last: Option<Mapping<'_>> = None;
    for line in smaps.lines() {
        last = Mapping::read(line).or(last);
        let anonymous = line.strip_prefix("Anonymous:").map(str::trim);
        if let (Some("0 kB"), Some(mapping)) = (anonymous, &last)
            && matches!(mapping.permissions, "r-xp" | "r--p")
            && Path::new(mapping.path) == program
        {
            ranges.push((mapping.from, mapping.length));
        }
    }
    ranges
}

impl<'a> Mapping<'a> {
    /// `None` for a line that says something of the mapping before.
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (from, to) = words.next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (from, to) = (address(from)?, address(to)?);
        let permissions = words.next()?;
        let path = words.nth(3)?.trim_start();
        Some(Self { from, length: to.checked_sub(from)?, permissions, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a0000000-55d0a0b00000 r--p 00000000 08:01 42                         /usr/bin/leno proxy
Rss:                2880 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d0a0b00000-55d0a0b02000 r-xp 00b00000 08:01 42                         /usr/bin/leno proxy
Anonymous:             0 kB
55d0a0b02000-55d0a0b04000 r--p 00b02000 08:01 42                         /usr/bin/leno proxy
Anonymous:             8 kB
55d0a0b04000-55d0a0b06000 rw-p 00b04000 08:01 42                         /usr/bin/leno proxy
Anonymous:             0 kB
7f0000000000-7f0000002000 r-xp 00000000 08:01 43                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000002000-7f0000004000 r--p 00000000 00:00 0 
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_as_in_the_programs_file_is_let_go_of() {
        let found = unchanged(SMAPS, Path::new("/usr/bin/leno proxy"));
        assert_eq!(found, [(0x55d0_a000_0000, 0xb0_0000), (0x55d0_a0b0_0000, 0x2000)]);
        assert!(unchanged("", Path::new("/")).is_empty());
    }

    #[test]
    fn code_that_was_let_go_of_still_runs() {
        let code = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(forget_start().unwrap() > 100_000);
        assert_eq!(
            fs::read_to_string("/proc/self/maps").unwrap().lines().next(),
            code.lines().next()
        );
    }

    #[test]
    fn it_may_be_called_at_any_time() {
        let kept = vec![1_u8; 1 << 20];
        give_back();
        drop(kept.clone());
        give_back();
        assert!(kept.iter().all(|byte| *byte == 1));
    }
}
