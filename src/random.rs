//! Random bytes for ids, masks and jitter, drawn from the kernel for many uses at a time. Not for secrets.

use std::cell::RefCell;

const DRAWN: usize = 512;

struct Pool {
    bytes: [u8; DRAWN],
    used: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; DRAWN], used: DRAWN }) };
}

/// Bytes that nobody was given before.
pub fn bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= DRAWN) }
    POOL.with_borrow_mut(|pool| {
        if pool.used + N > DRAWN {
            // Without randomness ids still sort by time and masks are still masks; a kernel that has none would not have
            // let the process start.
            let _ = getrandom::fill(&mut pool.bytes);
            pool.used = 0;
        }
        let mut taken = [0; N];
        taken.copy_from_slice(&pool.bytes[pool.used..pool.used + N]);
        pool.used += N;
        taken
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn nothing_is_given_twice() {
        let given: HashSet<[u8; 16]> = (0..200).map(|_| super::bytes()).collect();
        assert_eq!(given.len(), 200);
    }
}
