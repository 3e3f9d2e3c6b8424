//! Numbers as an attacker picks them: mostly small, so that they are accepted, and else at the edges.

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};

/// A size, an index or an axis.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub usize);

/// A stride.
#[derive(Clone, Copy, Debug)]
pub struct Stride(pub isize);

impl<'a> Arbitrary<'a> for Size {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let tag = u8::arbitrary(u)?;
        let near = usize::from(tag % 4);
        Ok(Size(match tag {
            0..=207 => usize::from(tag % 8),
            208..=231 => usize::from(u8::arbitrary(u)?),
            232..=235 => usize::MAX - near,
            236..=239 => (isize::MAX as usize - 1).wrapping_add(near),
            240..=243 => (1 << 32) - 2 + near,
            244..=247 => (1 << 31) - 2 + near,
            248..=249 => 1 << (u8::arbitrary(u)? % usize::BITS as u8),
            _ => usize::arbitrary(u)?,
        }))
    }
}

impl<'a> Arbitrary<'a> for Stride {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let tag = u8::arbitrary(u)?;
        let near = isize::from(tag as i8 % 4);
        Ok(Stride(match tag {
            0..=207 => isize::from(tag) % 26 - 9,
            208..=231 => isize::from(i8::arbitrary(u)?),
            232..=235 => isize::MIN + near.abs(),
            236..=239 => isize::MAX - near.abs(),
            240..=243 => (1 << 32) + near,
            244..=247 => -(1 << 62) + near,
            _ => isize::arbitrary(u)?,
        }))
    }
}
