//! Four Keccak states side by side: lane `i` of all four in one register of 256 bits.
//!
//! The steps are those of FIPS 202, section 3.2, with the padding of the original Keccak submission (one `01` byte
//! instead of `06`), as Ethereum uses it. Lane `(x, y)` is at index `x + 5y`.

use std::arch::x86_64::{
    __m256i, _mm256_andnot_si256, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi64x,
    _mm256_setr_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi64,
    _mm256_srli_epi64, _mm256_unpackhi_epi64, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use crate::{Hash, PAIR_BYTES, SECTOR_BYTES};

/// Inputs that are hashed together.
const WIDTH: usize = 4;
/// Lanes of the state.
const LANES: usize = 25;
/// Bytes of input between two permutations of Keccak-256.
const RATE_LANES: usize = 17;

/// Constants of the iota step (FIPS 202, algorithm 5).
const ROUND_CONSTANTS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// Hashes sectors, four at a time.
#[target_feature(enable = "avx2")]
pub(crate) fn hash_sectors(sectors: &[[u8; SECTOR_BYTES]], hashes: &mut [Hash]) {
    in_fours(sectors, hashes, |input, output| {
        // Two permutations: 17 lanes of the sector, then 15 lanes and the padding.
        let mut state = [_mm256_setzero_si256(); LANES];
        absorb::<0, RATE_LANES, SECTOR_BYTES>(&mut state, input);
        state = permuted(state);
        absorb::<RATE_LANES, 15, SECTOR_BYTES>(&mut state, input);
        pad::<15>(&mut state);
        squeeze(&permuted(state), output);
    });
}

/// Hashes pairs of hashes, four pairs at a time.
#[target_feature(enable = "avx2")]
pub(crate) fn hash_pairs(pairs: &[[u8; PAIR_BYTES]], hashes: &mut [Hash]) {
    in_fours(pairs, hashes, |input, output| {
        let mut state = [_mm256_setzero_si256(); LANES];
        absorb::<0, 8, PAIR_BYTES>(&mut state, input);
        pad::<8>(&mut state);
        squeeze(&permuted(state), output);
    });
}

/// Hands the inputs over in fours, the last few filled up with zeros.
#[target_feature(enable = "avx2")]
fn in_fours<const N: usize>(
    inputs: &[[u8; N]],
    hashes: &mut [Hash],
    hash: impl Fn(&[[u8; N]; WIDTH], &mut [Hash; WIDTH]),
) {
    let (inputs, last_inputs) = inputs.as_chunks::<WIDTH>();
    let (hashes, last_hashes) = hashes.as_chunks_mut::<WIDTH>();
    for (input, output) in inputs.iter().zip(hashes) {
        hash(input, output);
    }
    if !last_inputs.is_empty() {
        let (mut filled, mut output) = ([[0; N]; WIDTH], [[0; 32]; WIDTH]);
        filled[..last_inputs.len()].copy_from_slice(last_inputs);
        hash(&filled, &mut output);
        last_hashes.copy_from_slice(&output[..last_inputs.len()]);
    }
}

/// Mixes `COUNT` lanes of each input, from lane `FIRST` of the input on, into the beginning of the state.
#[inline]
#[target_feature(enable = "avx2")]
fn absorb<const FIRST: usize, const COUNT: usize, const N: usize>(
    state: &mut [__m256i; LANES],
    input: &[[u8; N]; WIDTH],
) {
    let mut lane = 0;
    while lane + 4 <= COUNT {
        let block = transposed([
            load(&input[0], FIRST + lane),
            load(&input[1], FIRST + lane),
            load(&input[2], FIRST + lane),
            load(&input[3], FIRST + lane),
        ]);
        for offset in 0..4 {
            state[lane + offset] = _mm256_xor_si256(state[lane + offset], block[offset]);
        }
        lane += 4;
    }
    while lane < COUNT {
        let lanes = [
            word(&input[0], FIRST + lane),
            word(&input[1], FIRST + lane),
            word(&input[2], FIRST + lane),
            word(&input[3], FIRST + lane),
        ];
        state[lane] = _mm256_xor_si256(state[lane], bytemuck::cast(lanes));
        lane += 1;
    }
}

/// Four lanes of one input.
#[inline]
#[target_feature(enable = "avx2")]
fn load<const N: usize>(input: &[u8; N], lane: usize) -> __m256i {
    let bytes: [u8; 32] = *input[8 * lane..]
        .first_chunk()
        .expect("four lanes are within the input");
    bytemuck::cast(bytes)
}

/// One lane of one input. Lanes are little-endian, as the processor is.
#[inline]
fn word<const N: usize>(input: &[u8; N], lane: usize) -> u64 {
    u64::from_le_bytes(
        *input[8 * lane..]
            .first_chunk()
            .expect("the lane is within the input"),
    )
}

/// Ends the input after `USED` lanes of the last block.
#[inline]
#[target_feature(enable = "avx2")]
fn pad<const USED: usize>(state: &mut [__m256i; LANES]) {
    state[USED] = _mm256_xor_si256(state[USED], _mm256_set1_epi64x(1));
    let last = RATE_LANES - 1;
    state[last] = _mm256_xor_si256(state[last], _mm256_set1_epi64x(i64::MIN));
}

/// The first four lanes of each state are its hash.
#[inline]
#[target_feature(enable = "avx2")]
fn squeeze(state: &[__m256i; LANES], hashes: &mut [Hash; WIDTH]) {
    let [a, b, c, d] = transposed([state[0], state[1], state[2], state[3]]);
    *hashes = bytemuck::cast([a, b, c, d]);
}

/// Four rows of four words become four columns.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
    [
        _mm256_permute2x128_si256::<0x20>(ab_low, cd_low),
        _mm256_permute2x128_si256::<0x20>(ab_high, cd_high),
        _mm256_permute2x128_si256::<0x31>(ab_low, cd_low),
        _mm256_permute2x128_si256::<0x31>(ab_high, cd_high),
    ]
}

/// Every lane rotated to the left by the literal number of bits. Whole bytes are moved by one instruction.
macro_rules! rotated {
    ($lanes:expr, 0) => {
        $lanes
    };
    ($lanes:expr, 8) => {
        _mm256_shuffle_epi8(
            $lanes,
            _mm256_setr_epi8(
                7, 0, 1, 2, 3, 4, 5, 6, 15, 8, 9, 10, 11, 12, 13, 14, 7, 0, 1, 2, 3, 4, 5, 6, 15,
                8, 9, 10, 11, 12, 13, 14,
            ),
        )
    };
    ($lanes:expr, 56) => {
        _mm256_shuffle_epi8(
            $lanes,
            _mm256_setr_epi8(
                1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8, 1, 2, 3, 4, 5, 6, 7, 0, 9,
                10, 11, 12, 13, 14, 15, 8,
            ),
        )
    };
    ($lanes:expr, $bits:literal) => {{
        let lanes = $lanes;
        _mm256_or_si256(
            _mm256_slli_epi64::<$bits>(lanes),
            _mm256_srli_epi64::<{ 64 - $bits }>(lanes),
        )
    }};
}

/// Row `$y` of the next state: theta, rho and pi of the five lanes that move there, then chi.
macro_rules! row {
    ($next:ident, $y:literal, $state:ident, $theta:ident,
     $($lane:literal rotated $bits:tt),*) => {
        let [b0, b1, b2, b3, b4] = [$(
            rotated!(_mm256_xor_si256($state[$lane], $theta[$lane % 5]), $bits)
        ),*];
        $next[5 * $y] = _mm256_xor_si256(b0, _mm256_andnot_si256(b1, b2));
        $next[5 * $y + 1] = _mm256_xor_si256(b1, _mm256_andnot_si256(b2, b3));
        $next[5 * $y + 2] = _mm256_xor_si256(b2, _mm256_andnot_si256(b3, b4));
        $next[5 * $y + 3] = _mm256_xor_si256(b3, _mm256_andnot_si256(b4, b0));
        $next[5 * $y + 4] = _mm256_xor_si256(b4, _mm256_andnot_si256(b0, b1));
    };
}

/// The permutation Keccak-f\[1600\] of four states.
#[inline]
#[target_feature(enable = "avx2")]
fn permuted(mut state: [__m256i; LANES]) -> [__m256i; LANES] {
    // Two rounds at a time go from one array to the other and back, without copying.
    for [first, second] in ROUND_CONSTANTS.as_chunks::<2>().0 {
        let between = after_round(&state, *first);
        state = after_round(&between, *second);
    }
    state
}

#[inline]
#[target_feature(enable = "avx2")]
fn after_round(state: &[__m256i; LANES], round_constant: u64) -> [__m256i; LANES] {
    // Plain loops: closures that are passed to library functions are not always compiled for the instruction set.
    let mut column = [_mm256_setzero_si256(); 5];
    for x in 0..5 {
        column[x] = _mm256_xor_si256(
            _mm256_xor_si256(
                _mm256_xor_si256(state[x], state[x + 5]),
                _mm256_xor_si256(state[x + 10], state[x + 15]),
            ),
            state[x + 20],
        );
    }
    let mut theta = [_mm256_setzero_si256(); 5];
    for x in 0..5 {
        theta[x] = _mm256_xor_si256(column[(x + 4) % 5], rotated!(column[(x + 1) % 5], 1));
    }
    let mut next = [_mm256_setzero_si256(); LANES];
    row!(next, 0, state, theta, 0 rotated 0, 6 rotated 44, 12 rotated 43, 18 rotated 21, 24 rotated 14);
    row!(next, 1, state, theta, 3 rotated 28, 9 rotated 20, 10 rotated 3, 16 rotated 45, 22 rotated 61);
    row!(next, 2, state, theta, 1 rotated 1, 7 rotated 6, 13 rotated 25, 19 rotated 8, 20 rotated 18);
    row!(next, 3, state, theta, 4 rotated 27, 5 rotated 36, 11 rotated 10, 17 rotated 15, 23 rotated 56);
    row!(next, 4, state, theta, 2 rotated 62, 8 rotated 55, 14 rotated 39, 15 rotated 41, 21 rotated 2);
    next[0] = _mm256_xor_si256(next[0], _mm256_set1_epi64x(round_constant as i64));
    next
}
