//! The part of Python's pickle machine that a state dict of plain tensors needs.
//!
//! Nothing is ever called: a `REDUCE` of one of four known functions makes a description of a
//! tensor, and any other name is refused. Values live in arenas and refer to one another by number,
//! so a hostile nesting or cycle costs neither stack nor leaks.

use std::collections::HashMap;
use std::rc::Rc;

use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// Instructions beyond which a pickle is refused; a tensor takes about 40.
const MAX_OPS: usize = 4 << 20;
/// Values on the stack; Python's pickler itself writes batches of 1000 entries.
const MAX_STACK: usize = 1 << 18;
/// Bytes of one string, of which a hostile pickle could make a hundred thousand copies.
const MAX_TEXT: usize = 4096;
/// Axes of one tensor.
const MAX_AXES: usize = 8;

/// One entry of the state dict: a strided view of a storage, none of it checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    /// Element type.
    pub(super) dtype: Dtype,
    /// Name of the storage's file.
    pub(super) key: Rc<str>,
    /// Bytes that the storage must have.
    pub(super) storage_bytes: u64,
    /// First element, in elements.
    pub(super) offset: u64,
    /// Extents, slowest first.
    pub(super) shape: Vec<usize>,
    /// Distances along each axis, in elements.
    pub(super) strides: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    /// A storage class; `None` is the untyped one, whose tensors name their dtype.
    Storage(Option<Dtype>),
    Dtype(Dtype),
}

#[derive(Debug, Clone)]
enum Value {
    /// Something without meaning here: None, a float.
    Other,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Global(Global),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

#[derive(Debug, Clone)]
struct Storage {
    dtype: Option<Dtype>,
    key: Rc<str>,
    bytes: u64,
}

#[derive(Default)]
struct Machine<'p> {
    code: &'p [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<View>,
}

/// Reads the state dict in a pickle: names and views, in file order.
///
/// # Errors
/// [`Code::PickleRefused`] for anything but a flat dict of tensors, [`Code::BadArchive`] for
/// broken bytecode, [`Code::TooManyTensors`].
pub(super) fn read_state_dict(code: &[u8], max_tensors: usize) -> Result<Vec<(Rc<str>, View)>> {
    let mut machine = Machine {
        code,
        ..Machine::default()
    };
    for _ in 0..MAX_OPS {
        let op = machine.byte()?;
        if op == b'.' {
            return machine.finish(max_tensors);
        }
        machine.step(op)?;
        if machine.stack.len() > MAX_STACK || machine.marks.len() > MAX_STACK {
            return Err(refused("it nests too deeply"));
        }
    }
    Err(refused("it has too many instructions"))
}

/// A pickle that is well formed and asks for more than tensors.
fn refused(why: impl Into<String>) -> Error {
    Error::new(
        Code::PickleRefused,
        format!("the pickle was not read: {}", why.into()),
    )
    .hint("load it in a Python that you trust with it, and re-save the tensors with safetensors")
}

fn broken(why: &str) -> Error {
    Error::new(Code::BadArchive, format!("the pickle is broken: {why}"))
}

impl Machine<'_> {
    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            0x80 => drop(self.byte()?),
            0x95 => drop(self.bytes(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::Other),
            b'G' => {
                self.bytes(8)?;
                self.stack.push(Value::Other);
            }
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' | b'M' | b'J' | 0x8a => {
                let value = self.integer(op)?;
                self.stack.push(Value::Int(value));
            }
            0x8c | b'X' | 0x8d => {
                let text = self.text(op)?;
                self.stack.push(Value::Text(text));
            }
            b'c' | 0x93 => self.global(op)?,
            b')' => self.push_tuple(Vec::new()),
            0x85..=0x87 => {
                let items = self.pop_n(usize::from(op - 0x84))?;
                self.push_tuple(items);
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push_tuple(items);
            }
            b']' => {
                self.sequences.push(Vec::new());
                self.stack.push(Value::List(self.sequences.len() - 1));
            }
            b'}' => self.push_dict(),
            b'q' | b'r' | 0x94 => self.put(op)?,
            b'h' | b'j' => {
                let index = self.index(op == b'h')?;
                let value = self
                    .memo
                    .get(&index)
                    .cloned()
                    .ok_or_else(|| broken("unknown memo entry"))?;
                self.stack.push(value);
            }
            b'a' | b'e' | b's' | b'u' => self.fill(op)?,
            b'0' => drop(self.pop()?),
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            // The state of an OrderedDict is its `_metadata`: versions of modules, no tensors.
            b'b' => match (self.pop()?, self.stack.last()) {
                (Value::Dict(_), Some(Value::Dict(_))) => {}
                _ => return Err(refused("it sets the state of an object")),
            },
            op => {
                return Err(refused(format!(
                    "instruction 0x{op:02x} is not one that tensors need"
                )));
            }
        }
        Ok(())
    }

    fn finish(mut self, max_tensors: usize) -> Result<Vec<(Rc<str>, View)>> {
        let top = self.pop()?;
        let (Value::Dict(dict), true) = (top, self.stack.is_empty()) else {
            return Err(refused("its content is not a dict"));
        };
        let entries = std::mem::take(&mut self.dicts[dict]);
        if entries.len() > max_tensors {
            let message = format!("{} tensors, at most {max_tensors} are read", entries.len());
            return Err(Error::new(Code::TooManyTensors, message));
        }
        let entry = |(key, value)| match (key, value) {
            (Value::Text(name), Value::Tensor(at)) => Ok((name, self.tensors[at].clone())),
            (Value::Text(name), _) => {
                Err(refused("an entry of the dict is not a tensor").tensor(&*name))
            }
            _ => Err(refused("a key of the dict is not a string")),
        };
        entries.into_iter().map(entry).collect()
    }

    fn bytes(&mut self, count: usize) -> Result<&[u8]> {
        let (head, tail) = self
            .code
            .split_at_checked(count)
            .ok_or_else(|| broken("it ends early"))?;
        self.code = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    /// A little-endian unsigned number of up to 8 bytes.
    fn unsigned(&mut self, count: usize) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..count].copy_from_slice(self.bytes(count)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn index(&mut self, short: bool) -> Result<u32> {
        Ok(self.unsigned(if short { 1 } else { 4 })? as u32)
    }

    fn integer(&mut self, op: u8) -> Result<i64> {
        Ok(match op {
            b'K' => self.unsigned(1)? as i64,
            b'M' => self.unsigned(2)? as i64,
            b'J' => self.unsigned(4)? as u32 as i32 as i64,
            _ => {
                let count = usize::from(self.byte()?);
                if count > 8 {
                    return Err(refused("an integer does not fit in 64 bits"));
                }
                let unused = 64 - 8 * count as u32;
                let value = self.unsigned(count)? as i64;
                if count == 0 {
                    0
                } else {
                    value << unused >> unused
                }
            }
        })
    }

    fn text(&mut self, op: u8) -> Result<Rc<str>> {
        let len = self.unsigned(match op {
            0x8c => 1,
            b'X' => 4,
            _ => 8,
        })?;
        let bytes = self.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
        if bytes.len() > MAX_TEXT {
            return Err(refused(format!("a string is longer than {MAX_TEXT} bytes")));
        }
        std::str::from_utf8(bytes)
            .map(Rc::from)
            .map_err(|_| broken("a string is not UTF-8"))
    }

    fn line(&mut self) -> Result<String> {
        let end = self
            .code
            .iter()
            .take(256)
            .position(|b| *b == b'\n')
            .ok_or_else(|| broken("a name has no end"))?;
        let line = String::from_utf8_lossy(&self.code[..end]).into_owned();
        self.bytes(end + 1)?;
        Ok(line)
    }

    fn global(&mut self, op: u8) -> Result<()> {
        let (module, name) = if op == b'c' {
            (self.line()?, self.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => (module.to_string(), name.to_string()),
                _ => return Err(broken("a name is not a string")),
            }
        };
        let global = resolve(&module, &name).ok_or_else(|| {
            let full: String = format!("{module}.{name}").chars().take(200).collect();
            refused(format!(
                "it asks for `{full}`, and only plain tensors are read"
            ))
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value> {
        // Values below a mark belong to whoever set it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(broken("its stack is empty"));
        }
        self.stack.pop().ok_or_else(|| broken("its stack is empty"))
    }

    fn pop_n(&mut self, count: usize) -> Result<Vec<Value>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(at) if at >= floor => Ok(self.stack.split_off(at)),
            _ => Err(broken("its stack is empty")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let at = self
            .marks
            .pop()
            .ok_or_else(|| broken("a mark is missing"))?;
        Ok(self.stack.split_off(at.min(self.stack.len())))
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.sequences.push(items);
        self.stack.push(Value::Tuple(self.sequences.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn put(&mut self, op: u8) -> Result<()> {
        let index = match op {
            0x94 => self.memo.len() as u32,
            _ => self.index(op == b'q')?,
        };
        let top = self
            .stack
            .last()
            .cloned()
            .ok_or_else(|| broken("its stack is empty"))?;
        self.memo.insert(index, top);
        Ok(())
    }

    /// `APPEND`, `APPENDS`, `SETITEM`, `SETITEMS`.
    fn fill(&mut self, op: u8) -> Result<()> {
        let items = match op {
            b'a' => self.pop_n(1)?,
            b's' => self.pop_n(2)?,
            _ => self.pop_mark()?,
        };
        match (op, self.stack.last()) {
            (b'a' | b'e', Some(Value::List(at))) => self.sequences[*at].extend(items),
            (b's' | b'u', Some(Value::Dict(at))) => {
                if items.len() % 2 != 0 {
                    return Err(broken("a key has no value"));
                }
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    self.dicts[*at].push((key, value));
                }
            }
            _ => return Err(refused("it fills something other than a list or a dict")),
        }
        Ok(())
    }

    /// A storage: `("storage", class, key, location, number of elements)`.
    fn persistent(&mut self) -> Result<()> {
        let args = match self.pop()? {
            Value::Tuple(at) => self.sequences[at].as_slice(),
            _ => &[],
        };
        let [
            Value::Text(kind),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            Value::Int(n),
        ] = args
        else {
            return Err(refused("a persistent object is not a storage"));
        };
        let size = dtype.map_or(1, |dtype| dtype.bits() as u64 / 8);
        let bytes = u64::try_from(*n).ok().and_then(|n| n.checked_mul(size));
        let Some(bytes) = bytes.filter(|_| **kind == *"storage") else {
            return Err(refused("a persistent object is not a storage"));
        };
        self.storages.push(Storage {
            dtype: *dtype,
            key: Rc::clone(key),
            bytes,
        });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn reduce(&mut self) -> Result<()> {
        let (Value::Tuple(args), Value::Global(function)) = (self.pop()?, self.pop()?) else {
            return Err(refused("it calls something that has no name"));
        };
        match (function, self.sequences[args].as_slice()) {
            (Global::OrderedDict, []) => self.push_dict(),
            (Global::RebuildParameter, [Value::Tensor(at), Value::Bool, Value::Dict(_)]) => {
                self.stack.push(Value::Tensor(*at));
            }
            (Global::RebuildTensorV2, [Value::Storage(storage), view @ ..])
                if matches!(view.len(), 5 | 6) =>
            {
                let storage = &self.storages[*storage];
                let dtype = storage
                    .dtype
                    .ok_or_else(|| refused("an untyped storage has no dtype"))?;
                self.push_tensor(storage.clone(), dtype, view.to_vec())?;
            }
            (
                Global::RebuildTensorV3,
                [
                    Value::Storage(storage),
                    view @ ..,
                    Value::Global(Global::Dtype(dtype)),
                ],
            ) if view.len() == 5 => {
                self.push_tensor(self.storages[*storage].clone(), *dtype, view.to_vec())?;
            }
            (function, _) => return Err(refused(format!("unexpected arguments for {function:?}"))),
        }
        Ok(())
    }

    /// `view` is offset, size, stride, requires_grad, backward hooks, and perhaps metadata.
    fn push_tensor(&mut self, storage: Storage, dtype: Dtype, view: Vec<Value>) -> Result<()> {
        let bad = || refused("a tensor's offset, size or stride is not what torch writes");
        let [
            Value::Int(offset),
            Value::Tuple(size),
            Value::Tuple(strides),
            ..,
        ] = view.as_slice()
        else {
            return Err(bad());
        };
        let numbers = |at: usize| -> Option<Vec<u64>> {
            let items = &self.sequences[at];
            let number = |v: &Value| match v {
                Value::Int(i) => u64::try_from(*i).ok(),
                _ => None,
            };
            (items.len() <= MAX_AXES).then(|| items.iter().map(number).collect())?
        };
        let (size, strides) = numbers(*size).zip(numbers(*strides)).ok_or_else(bad)?;
        let shape: Option<Vec<usize>> = size.iter().map(|n| usize::try_from(*n).ok()).collect();
        let offset = u64::try_from(*offset).map_err(|_| bad())?;
        if size.len() != strides.len() {
            return Err(bad());
        }
        self.tensors.push(View {
            dtype,
            key: storage.key,
            storage_bytes: storage.bytes,
            offset,
            shape: shape.ok_or_else(bad)?,
            strides,
        });
        self.stack.push(Value::Tensor(self.tensors.len() - 1));
        Ok(())
    }
}

fn resolve(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch" | "torch.storage", "UntypedStorage") => Global::Storage(None),
        ("torch", name) => match name.strip_suffix("Storage") {
            Some(class) => Global::Storage(Some(storage_dtype(class)?)),
            None => Global::Dtype(dtype(name)?),
        },
        _ => return None,
    })
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "Float" => Dtype::F32,
        "Double" => Dtype::F64,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        "ComplexFloat" => Dtype::C64,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "bool" => Dtype::Bool,
        "complex64" => Dtype::C64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float8_e4m3fnuz" => Dtype::F8_E4M3FNUZ,
        "float8_e5m2fnuz" => Dtype::F8_E5M2FNUZ,
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        _ => return None,
    })
}
