//! Keccak-256 of many short inputs of one size at once.
//!
//! A Merkle tree over sectors of 256 bytes hashes nothing else: sectors, and pairs of hashes. Four inputs go through the
//! permutation side by side where the processor has AVX2, which is three times as fast as one after the other; elsewhere
//! every input is hashed by `alloy-primitives`. Results are the same.

#[cfg(target_arch = "x86_64")]
mod avx2;

use alloy_primitives::keccak256;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 256;
/// Bytes of two hashes.
pub const PAIR_BYTES: usize = 64;

/// A Keccak-256 hash.
pub type Hash = [u8; 32];

/// Hashes every sector.
///
/// # Panics
///
/// When there are not as many places as sectors.
pub fn hash_sectors(sectors: &[[u8; SECTOR_BYTES]], hashes: &mut [Hash]) {
    assert_eq!(sectors.len(), hashes.len(), "one place for each sector");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        #[allow(unsafe_code)]
        unsafe {
            avx2::hash_sectors(sectors, hashes);
        }
        return;
    }
    one_by_one(sectors, hashes);
}

/// Hashes every pair of hashes, as the inner nodes of a Merkle tree are.
///
/// # Panics
///
/// When there are not as many places as pairs.
pub fn hash_pairs(pairs: &[[u8; PAIR_BYTES]], hashes: &mut [Hash]) {
    assert_eq!(pairs.len(), hashes.len(), "one place for each pair");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        #[allow(unsafe_code)]
        unsafe {
            avx2::hash_pairs(pairs, hashes);
        }
        return;
    }
    one_by_one(pairs, hashes);
}

fn one_by_one<const N: usize>(inputs: &[[u8; N]], hashes: &mut [Hash]) {
    for (input, hash) in inputs.iter().zip(hashes) {
        *hash = keccak256(input).0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of inputs around the width of the processor's registers, each input different in every byte.
    fn inputs<const N: usize>(count: usize) -> Vec<[u8; N]> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..count)
            .map(|_| std::array::from_fn(|_| next()))
            .collect()
    }

    #[test]
    fn many_at_once_are_the_same_as_one_by_one() {
        for count in 0..40 {
            let sectors = inputs::<SECTOR_BYTES>(count);
            let (mut fast, mut plain) = (vec![[0; 32]; count], vec![[1; 32]; count]);
            hash_sectors(&sectors, &mut fast);
            one_by_one(&sectors, &mut plain);
            assert_eq!(fast, plain, "{count} sectors");

            let pairs = inputs::<PAIR_BYTES>(count);
            hash_pairs(&pairs, &mut fast);
            one_by_one(&pairs, &mut plain);
            assert_eq!(fast, plain, "{count} pairs");
        }
    }

    /// The published hash of a sector of zeros, and of two of them.
    #[test]
    fn zeros_have_the_published_hashes() {
        let mut hashes = [[0; 32]; 4];
        hash_sectors(&[[0; SECTOR_BYTES]; 4], &mut hashes);
        let zero = "d397b3b043d87fcd6fad1291ff0bfd16401c274896d8c63a923727f077b8e0b5";
        assert!(
            hashes
                .iter()
                .all(|hash| alloy_primitives::hex::encode(hash) == zero)
        );
        let pair: [u8; PAIR_BYTES] = [hashes[0], hashes[0]].concat().try_into().unwrap();
        hash_pairs(&[pair; 4], &mut hashes);
        let above = "f73e6947d7d1628b9976a6e40d7b278a8a16405e96324a68df45b12a51b7cfde";
        assert!(
            hashes
                .iter()
                .all(|hash| alloy_primitives::hex::encode(hash) == above)
        );
    }
}
