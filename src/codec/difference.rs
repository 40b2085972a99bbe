//! The difference of two blocks of bytes: each the other XOR it. Where pages are alike it is zeros, which compress to nothing.

/// Turns `bytes` into its difference to `base`, and such a difference back into the bytes. `base` is cut, or taken as followed
/// by zeros, to the same length.
pub fn xor(bytes: &mut [u8], base: &[u8]) {
    let len = bytes.len().min(base.len());
    let (words, rest) = bytes[..len].as_chunks_mut::<8>();
    let (base_words, base_rest) = base[..len].as_chunks::<8>();
    for (word, base) in words.iter_mut().zip(base_words) {
        *word = (u64::from_ne_bytes(*word) ^ u64::from_ne_bytes(*base)).to_ne_bytes();
    }
    for (byte, base) in rest.iter_mut().zip(base_rest) {
        *byte ^= base;
    }
}

/// Leaves in `into` the difference of `bytes` to `base`, as [`xor`] makes it.
pub fn difference(bytes: &[u8], base: &[u8], into: &mut Vec<u8>) {
    let (both, beyond) = bytes.split_at(bytes.len().min(base.len()));
    // What is overwritten anyway need not be made zeros.
    into.resize(both.len(), 0);
    let (words, rest) = into.as_chunks_mut::<8>();
    let (byte_words, byte_rest) = both.as_chunks::<8>();
    let (base_words, base_rest) = base[..both.len()].as_chunks::<8>();
    for ((word, bytes), base) in words.iter_mut().zip(byte_words).zip(base_words) {
        *word = (u64::from_ne_bytes(*bytes) ^ u64::from_ne_bytes(*base)).to_ne_bytes();
    }
    for ((byte, bytes), base) in rest.iter_mut().zip(byte_rest).zip(base_rest) {
        *byte = bytes ^ base;
    }
    into.extend_from_slice(beyond);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::{prop_assert_eq, proptest};

    use super::{difference, xor};

    #[test]
    fn what_is_alike_becomes_zeros_and_what_lies_beyond_the_base_stays() {
        let mut bytes = *b"abcdefghij";
        xor(&mut bytes, b"abXdef");
        assert_eq!(bytes, [0, 0, b'c' ^ b'X', 0, 0, 0, b'g', b'h', b'i', b'j']);
    }

    proptest! {
        #[test]
        fn a_difference_leads_back(bytes in vec(any::<u8>(), 0..100), base in vec(any::<u8>(), 0..100)) {
            let mut there_and_back = bytes.clone();
            xor(&mut there_and_back, &base);
            xor(&mut there_and_back, &base);
            prop_assert_eq!(&there_and_back, &bytes);
            let mut apart = vec![7; 33];
            difference(&bytes, &base, &mut apart);
            xor(&mut apart, &base);
            prop_assert_eq!(apart, bytes);
        }
    }
}
