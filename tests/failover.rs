//! Is the right server followed, and nothing lost, whatever happens to a cluster of several servers?

mod lineages;
mod recovered;
mod rivals;
mod storm;
mod switches;
