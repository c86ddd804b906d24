//! Nothing lost, nothing silent: bad inputs and the words they are refused with; runs killed at any moment; runs verified afterwards;
//! guards; every parser on anything at all.

mod catalogue;
mod kill;
mod memory;
mod parsers;
mod place;
mod verify;

#[path = "../weights/make.rs"]
#[allow(dead_code)] // the parts that only the tests of weights use
mod make;
