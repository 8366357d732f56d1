//! The allocator, and memory that was freed. mimalloc keeps it for a second in case it is needed again, and looks whether that second
//! is over only when more is freed: a thread that has become idle keeps for ever what its busy hours needed.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc,
    mi_zalloc_aligned,
};

/// mimalloc for a program: `#[global_allocator]`.
///
/// The `mimalloc` crate asks for an alignment also where any piece of memory has it. mimalloc goes a longer way then, and
/// takes more for what is larger than 1 KiB: 550 instructions of each request.
pub struct Allocator;

/// Whether mimalloc aligns all it gives for `layout` so (`MI_MAX_ALIGN_SIZE`, and the size of its smallest piece).
const fn is_usual(layout: Layout) -> bool {
    layout.align() <= 8 || (layout.align() <= 16 && layout.size() >= 16)
}

#[expect(unsafe_code, reason = "that is what an allocator is")]
// SAFETY: mimalloc gives memory of that size and alignment or none, and takes back what it gave by either way; it never
// unwinds. What it is asked for with an alignment, it is asked to resize with the same.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and any power of two may be asked for.
        unsafe {
            match is_usual(layout) {
                true => mi_malloc(layout.size()).cast(),
                false => mi_malloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and any power of two may be asked for.
        unsafe {
            match is_usual(layout) {
                true => mi_zalloc(layout.size()).cast(),
                false => mi_zalloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
        // SAFETY: the caller has it from here.
        unsafe { mi_free(pointer.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let resized = Layout::from_size_align(size, layout.align());
        // SAFETY: the caller has it from here.
        unsafe {
            match resized.is_ok_and(is_usual) {
                true => mi_realloc(pointer.cast(), size).cast(),
                false => mi_realloc_aligned(pointer.cast(), size, layout.align()).cast(),
            }
        }
    }
}

/// Gives back to the system what this thread has freed for longer than a second. Takes some microseconds; for a thread
/// to call now and then. Without effect where mimalloc is not the allocator.
pub fn give_back() {
    #[expect(unsafe_code, reason = "mimalloc has no safe interface for it")]
    // SAFETY: takes no pointer and may be called on any thread at any time outside of the allocator.
    unsafe {
        libmimalloc_sys::mi_collect(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also from here on: the tests of this crate run on it.
    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    #[test]
    #[expect(unsafe_code, reason = "an allocator is called so")]
    fn all_memory_is_aligned_and_keeps_what_is_in_it() {
        for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
            for size in (1..200).chain([1000, 1025, 3000, 4097, 100_000, 3 << 20]) {
                let layout = Layout::from_size_align(size, align).unwrap();
                let grown = Layout::from_size_align(size * 3 + 1, align).unwrap();
                // SAFETY: sizes are not 0, what is read was written or zeroed, and each is freed once as it was made.
                unsafe {
                    let zeroed = Allocator.alloc_zeroed(layout);
                    let made = Allocator.alloc(layout);
                    assert!(!made.is_null() && !zeroed.is_null());
                    assert_eq!((made as usize % align, zeroed as usize % align), (0, 0));
                    assert!((0..size).all(|at| zeroed.add(at).read() == 0), "{layout:?}");
                    made.write_bytes(7, size);
                    let made = Allocator.realloc(made, layout, grown.size());
                    assert_eq!(made as usize % align, 0, "{layout:?}");
                    assert!((0..size).all(|at| made.add(at).read() == 7), "{layout:?}");
                    Allocator.dealloc(made, grown);
                    Allocator.dealloc(zeroed, layout);
                }
            }
        }
    }

    #[test]
    fn it_may_be_called_at_any_time() {
        let kept = vec![1_u8; 1 << 20];
        super::give_back();
        drop(kept.clone());
        super::give_back();
        assert!(kept.iter().all(|byte| *byte == 1));
    }
}
