//! Randomness from a seed: xoshiro256**, seeded through SplitMix64.
//!
//! Every part of the world has a generator of its own, forked by name, so that a change in one
//! part leaves the dice of the others alone and a seed stays worth something.

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

/// SplitMix64's finaliser: spreads neighbouring inputs over the whole range.
pub const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Rng {
        let mut state = [0; 4];
        let mut next = seed;
        for word in &mut state {
            next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = mix(next);
        }
        Rng(state)
    }

    /// An independent generator for a part of the world.
    pub fn fork(&self, name: &str) -> Rng {
        let mut seed = self.0[0] ^ self.0[3];
        for byte in name.bytes() {
            seed = mix(seed ^ u64::from(byte));
        }
        Rng::new(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `limit`; 0 when that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The bias of a 64-bit product is far below what a simulation could show.
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of the items.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Mostly near `low`, sometimes near `high`: delays as networks and disks have them.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let spread = high.saturating_sub(low);
        let roll = self.below(1 << 16);
        low + ((u128::from(spread) * u128::from(roll) * u128::from(roll) * u128::from(roll)) >> 48)
            as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_name_make_the_same_numbers_and_others_do_not() {
        let draw = |mut rng: Rng| (0..4).map(|_| rng.bits()).collect::<Vec<_>>();
        let root = Rng::new(7);
        assert_eq!(draw(root.fork("disk")), draw(Rng::new(7).fork("disk")));
        assert_ne!(draw(root.fork("disk")), draw(root.fork("net")));
        assert_ne!(draw(Rng::new(7)), draw(Rng::new(8)));
    }

    #[test]
    fn ranges_hold_their_ends() {
        let mut rng = Rng::new(1);
        let rolls: Vec<u64> = (0..1000).map(|_| rng.range(3, 5)).collect();
        assert!(rolls.iter().all(|roll| (3..=5).contains(roll)));
        assert!(rolls.contains(&3) && rolls.contains(&5));
        assert!((0..1000).all(|_| (10..=99).contains(&rng.skewed(10, 99))));
    }
}
