//! Chance that can be had again: everything from one printed seed.

/// A sequence that its seed determines.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The seed of `variable`, or a new one; printed, so that a failure can be had again.
    ///
    /// # Panics
    /// The variable holds no number.
    #[must_use]
    pub fn from_env(variable: &str) -> Dice {
        let given = std::env::var(variable).ok();
        let seed = given.map_or_else(oast_daemon::random::number, |seed| {
            seed.parse().expect("the seed is a number")
        });
        println!("{variable}={seed}");
        Dice(seed)
    }

    /// The next number (`SplitMix64`: <https://prng.di.unimi.it/splitmix64.c>).
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// One of several.
    ///
    /// # Panics
    /// There is none.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        let place = self.below(of.len() as u64);
        of[usize::try_from(place).expect("a place in a slice")]
    }
}
