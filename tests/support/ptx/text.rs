//! From the text of a module to statements: comments gone, scopes of inline assembly resolved, names replaced by numbers.

use super::Result;
use std::collections::{BTreeMap, HashMap};

/// Bytes between two shared arrays, so that an access past the end of one is found.
const GAP: u64 = 64;
/// The alignment of dynamic shared memory.
const DYNAMIC_ALIGN: u64 = 1024;

/// An entry point.
#[derive(Default)]
pub struct Entry {
    /// Where each parameter lies among the arguments' bytes, and its size.
    pub parameters: Vec<(u64, usize)>,
    /// Static shared arrays: first byte and size. Dynamic memory begins after them.
    pub shared: Vec<(u64, u64)>,
    pub dynamic: u64,
    /// Threads of a block at most (`.maxntid`), and blocks that a multiprocessor must have room for (`.minnctapersm`); 0 where nothing is said.
    pub threads: u32,
    pub blocks: u32,
    /// Blocks of a cluster (`.reqnctapercluster`); 0 where nothing is said.
    pub cluster: u32,
    pub statements: Vec<Statement>,
    /// The statement that each label stands before.
    pub labels: HashMap<String, usize>,
    /// How many registers there are, the special ones and constants among them.
    pub registers: usize,
    /// Registers that hold a constant.
    pub constants: BTreeMap<u64, usize>,
    /// Registers that hold what the lane is.
    pub specials: BTreeMap<&'static str, usize>,
}

impl Entry {
    /// What a register always holds, if it does.
    pub fn constant(&self, register: usize) -> Option<u64> {
        self.constants.iter().find(|(_, r)| **r == register).map(|(value, _)| *value)
    }
}

/// An instruction as written.
pub struct Statement {
    pub line: usize,
    /// The predicate that it runs under, and whether that is negated.
    pub guard: Option<(usize, bool)>,
    pub opcode: String,
    pub operands: Vec<Operand>,
}

/// An operand. Every value is a register: constants and special registers have one of their own.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Register(usize),
    /// `[register + offset]`.
    Address(usize, u64),
    /// `[parameter + offset]`: a place among the arguments' bytes.
    Parameter(u64),
    /// `[map, {x, y}]`: what tells of a tensor, and coordinates.
    Tensor(usize, Vec<usize>),
    Vector(Vec<Operand>),
    /// `a|b`: two results.
    Pair(usize, usize),
    Label(String),
    /// `_`: a result that nobody wants.
    Nothing,
}

/// The special registers that kernels may read.
const SPECIALS: [&str; 14] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%laneid",
    "%cluster_ctarank",
];

/// A piece of text with the line that it begins in.
struct Piece {
    line: usize,
    text: String,
    /// What ended it: `;`, a brace of a scope, or `:` after a label.
    end: char,
}

/// Cuts a module at `;`, at labels and at the braces of scopes. Braces of vectors and of headers' lists are inside their pieces.
fn pieces(text: &str) -> Vec<Piece> {
    let (mut pieces, mut piece, mut begins) = (Vec::new(), String::new(), 0);
    for (i, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default().trim();
        // Directives that end with their line.
        let word = line.split_whitespace().next().unwrap_or_default();
        if piece.is_empty() && [".version", ".target", ".address_size", ".file", ".loc"].contains(&word) {
            continue;
        }
        let open = |a: char, b: char| piece.matches(a).count() as i32 - piece.matches(b).count() as i32;
        let (mut braces, mut round) = (open('{', '}'), open('(', ')'));
        for c in line.chars() {
            if piece.is_empty() {
                begins = i + 1;
            }
            let header = piece.contains(".entry") && round == 0;
            let scope = (c == '{' && (piece.is_empty() || header)) || (c == '}' && piece.is_empty());
            let label = c == ':' && !piece.contains(char::is_whitespace) && !piece.contains('.');
            if scope || label || (c == ';' && braces == 0) {
                pieces.push(Piece { line: begins, text: std::mem::take(&mut piece).trim().to_owned(), end: c });
                continue;
            }
            if piece.is_empty() && c.is_whitespace() {
                continue;
            }
            match c {
                '{' => braces += 1,
                '}' => braces -= 1,
                '(' => round += 1,
                ')' => round -= 1,
                _ => {}
            }
            piece.push(c);
        }
        if !piece.is_empty() {
            piece.push(' ');
        }
    }
    pieces
}

/// Every entry of a module, by name.
pub fn parse(text: &str) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let mut open: Option<Parser> = None;
    let mut module_shared = Vec::new();
    for piece in pieces(text) {
        let at = |message: String| format!("PTX line {}: {message}", piece.line);
        match &mut open {
            None if piece.text.contains(".entry ") => open = Some(Parser::new(&piece.text, &module_shared).map_err(at)?),
            None if piece.text.contains(".shared") => module_shared.push(piece.text),
            // Constants that the compiler has folded already; one that is used has no register, which is an error there.
            None if piece.text.starts_with(".global") || piece.text.starts_with(".visible .global") || piece.text.is_empty() => {}
            None => return Err(at(format!("outside every kernel: {}", piece.text))),
            Some(parser) => {
                if parser.take(&piece).map_err(at)? {
                    let parser = open.take().expect("it is open");
                    entries.insert(parser.name, parser.entry);
                }
            }
        }
    }
    Ok(entries)
}

/// The entry being read.
struct Parser {
    name: String,
    entry: Entry,
    parameters: HashMap<String, u64>,
    /// Names of registers and labels of each open scope, the outermost first; a label carries its scope's number.
    scopes: Vec<(usize, HashMap<String, usize>)>,
    opened: usize,
    /// Shared arrays by name.
    symbols: HashMap<String, u64>,
}

impl Parser {
    /// From `.visible .entry name( .param .u64 a, .param .align 64 .b8 b[128] ) .maxntid 256`.
    fn new(header: &str, module_shared: &[String]) -> Result<Self> {
        let rest = header.split(".entry ").nth(1).unwrap_or_default();
        let (name, rest) = rest.split_once('(').ok_or("an entry without parameters")?;
        let mut this = Self {
            name: name.trim().to_owned(),
            entry: Entry::default(),
            parameters: HashMap::new(),
            scopes: vec![(0, HashMap::new())], // the body
            opened: 0,
            symbols: HashMap::new(),
        };
        let mut end = 0u64;
        for parameter in rest.split(')').next().unwrap_or_default().split(',').filter(|p| !p.trim().is_empty()) {
            let variable = Variable::new(parameter)?;
            end = end.next_multiple_of(variable.align);
            this.parameters.insert(variable.name, end);
            this.entry.parameters.push((end, variable.bytes as usize));
            end += variable.bytes;
        }
        this.entry.threads = directive(rest, ".maxntid").map_or(0, |counts| counts.iter().product());
        this.entry.blocks = directive(rest, ".minnctapersm").and_then(|count| count.first().copied()).unwrap_or(0);
        this.entry.cluster = directive(rest, ".reqnctapercluster").map_or(0, |counts| counts.iter().product());
        module_shared.iter().try_for_each(|text| this.shared(text))?;
        Ok(this)
    }

    /// Takes one piece of the body; true when that was the closing brace.
    fn take(&mut self, piece: &Piece) -> Result<bool> {
        let text = piece.text.as_str();
        match piece.end {
            '{' => {
                self.opened += 1;
                self.scopes.push((self.opened, HashMap::new()));
            }
            '}' => {
                self.scopes.pop();
                return Ok(self.scopes.is_empty());
            }
            ':' => {
                let label = self.label(text);
                self.entry.labels.insert(label, self.entry.statements.len());
            }
            _ if text.starts_with(".reg") => self.registers(text)?,
            _ if text.starts_with(".shared") || text.starts_with(".extern .shared") => self.shared(text)?,
            _ if text.starts_with(".pragma") || text.is_empty() => {}
            _ if text.starts_with('.') => return Err(format!("unknown directive: {text}")),
            _ => {
                let statement = self.statement(piece.line, text)?;
                self.entry.statements.push(statement);
            }
        }
        Ok(false)
    }

    fn new_register(&mut self) -> usize {
        self.entry.registers += 1;
        self.entry.registers - 1
    }

    /// `.reg .f32 %f<20>` declares %f0 to %f19; `.reg .pred p, q` two.
    fn registers(&mut self, text: &str) -> Result<()> {
        let names = text.split_whitespace().skip(2).collect::<String>();
        for name in names.split(',') {
            let (stem, count) = match name.split_once('<') {
                Some((stem, count)) => (stem, count.trim_end_matches('>').parse::<usize>().map_err(|_| format!("registers {name}"))?),
                None => (name, 0),
            };
            for i in 0..count.max(1) {
                let register = self.new_register();
                let name = if count == 0 { stem.to_owned() } else { format!("{stem}{i}") };
                self.scopes.last_mut().expect("a body is a scope").1.insert(name, register);
            }
        }
        Ok(())
    }

    fn shared(&mut self, text: &str) -> Result<()> {
        let variable = Variable::new(text)?;
        let end = self.entry.shared.last().map_or(0, |(first, bytes)| first + bytes + GAP);
        if text.starts_with(".extern") {
            self.symbols.insert(variable.name, u64::MAX); // dynamic memory: where that begins is known when it is used
            return Ok(());
        }
        let first = end.next_multiple_of(variable.align);
        self.symbols.insert(variable.name, first);
        self.entry.shared.push((first, variable.bytes));
        self.entry.dynamic = (first + variable.bytes + GAP).next_multiple_of(DYNAMIC_ALIGN);
        Ok(())
    }

    /// `@!%p1 add.s32 %r1, %r2, 3`.
    fn statement(&mut self, line: usize, text: &str) -> Result<Statement> {
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(text) => {
                let (guard, rest) = text.split_once(char::is_whitespace).ok_or("a guard without an instruction")?;
                let register = self.register(guard.trim_start_matches('!'))?.ok_or_else(|| format!("no such predicate: {guard}"))?;
                (Some((register, guard.starts_with('!'))), rest.trim_start())
            }
        };
        let (opcode, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let is_branch = opcode == "bra" || opcode.starts_with("bra.");
        let operands = split(operands).into_iter().map(|o| if is_branch { Ok(Operand::Label(self.label(o))) } else { self.operand(o) });
        Ok(Statement { line, guard, opcode: opcode.to_owned(), operands: operands.collect::<Result<_>>()? })
    }

    /// A label's own name: the compiler's, which begin with $, are the body's; those of inline assembly are their scope's.
    fn label(&self, name: &str) -> String {
        let scope = if name.starts_with('$') { 0 } else { self.scopes.last().map_or(0, |(scope, _)| *scope) };
        format!("{name}@{scope}")
    }

    fn operand(&mut self, text: &str) -> Result<Operand> {
        if text == "_" {
            return Ok(Operand::Nothing);
        }
        if let Some(list) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            return Ok(Operand::Vector(split(list).into_iter().map(|o| self.operand(o)).collect::<Result<_>>()?));
        }
        if let Some(address) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            if let Some((map, list)) = address.split_once(',') {
                let list =
                    list.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(|| format!("no coordinates: {text}"))?;
                let coordinates = split(list).into_iter().map(|c| self.value(c)).collect::<Result<_>>()?;
                return Ok(Operand::Tensor(self.value(map.trim())?, coordinates));
            }
            let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
            let offset = offset.trim().parse::<i64>().map_err(|_| format!("the offset of {text}"))? as u64;
            if let Some(first) = self.parameters.get(base.trim()) {
                return Ok(Operand::Parameter(first.wrapping_add(offset)));
            }
            return Ok(Operand::Address(self.value(base.trim())?, offset));
        }
        if let Some((a, b)) = text.split_once('|') {
            return Ok(Operand::Pair(self.value(a.trim())?, self.value(b.trim())?));
        }
        Ok(Operand::Register(self.value(text)?))
    }

    /// The register of a value: its own, or that of a special register or constant.
    fn value(&mut self, text: &str) -> Result<usize> {
        if let Some(register) = self.register(text)? {
            return Ok(register);
        }
        let bits = match self.symbols.get(text) {
            Some(&u64::MAX) => self.entry.dynamic,
            Some(&first) => first,
            // Its address among the parameters, which `cvta.param` makes a generic one.
            None if self.parameters.contains_key(text) => self.parameters[text],
            None => constant(text).ok_or_else(|| format!("no such operand: {text}"))?,
        };
        if let Some(&register) = self.entry.constants.get(&bits) {
            return Ok(register);
        }
        let register = self.new_register();
        self.entry.constants.insert(bits, register);
        Ok(register)
    }

    fn register(&mut self, name: &str) -> Result<Option<usize>> {
        if let Some(&register) = self.scopes.iter().rev().find_map(|(_, names)| names.get(name)) {
            return Ok(Some(register));
        }
        if let Some(special) = SPECIALS.iter().find(|s| **s == name) {
            let register = match self.entry.specials.get(special) {
                Some(&register) => register,
                None => self.new_register(),
            };
            self.entry.specials.insert(*special, register);
            return Ok(Some(register));
        }
        if name.starts_with('%') {
            return Err(format!("no such register: {name}"));
        }
        Ok(None)
    }
}

/// A declaration: `.param .u64 name`, `.shared .align 4 .b8 name[64]`.
struct Variable {
    name: String,
    bytes: u64,
    align: u64,
}

impl Variable {
    fn new(text: &str) -> Result<Self> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let declared = words.pop().ok_or("an empty declaration")?;
        let (name, count) = declared.split_once('[').unwrap_or((declared, "1]"));
        let count = count.trim_end_matches(']');
        let count = if count.is_empty() { 0 } else { count.parse::<u64>().map_err(|_| format!("the size of {text}"))? };
        let bits = |word: &&str| word.strip_prefix(['.']).and_then(|t| t.strip_prefix(['b', 'u', 's', 'f'])?.parse::<u64>().ok());
        let element = words.iter().find_map(bits).ok_or_else(|| format!("the type of {text}"))? / 8;
        let align = words.iter().position(|w| *w == ".align").and_then(|i| words.get(i + 1)?.parse().ok()).unwrap_or(element);
        Ok(Self { name: name.to_owned(), bytes: element * count, align })
    }
}

/// The numbers of a directive behind an entry's parameters: `.maxntid 384, 1, 1`.
fn directive(text: &str, name: &str) -> Option<Vec<u32>> {
    let numbers = text.split_once(name)?.1.split('.').next()?;
    numbers.split(',').map(|n| n.trim().parse().ok()).collect()
}

/// A literal's bits.
fn constant(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(u64::from);
    }
    if let Some(hex) = text.strip_prefix("0d").or(text.strip_prefix("0x")) {
        return u64::from_str_radix(hex.trim_end_matches('U'), 16).ok();
    }
    text.parse::<i64>().ok().map(|v| v as u64).or_else(|| text.trim_end_matches('U').parse().ok())
}

/// At the commas that stand in no brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut first, mut parts) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[first..i].trim());
                first = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[first..].trim());
    parts.retain(|p| !p.is_empty());
    parts
}
