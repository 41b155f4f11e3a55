// What the Node peers share. A peer gives `open(workers)` -> { run(name, x),
// close() }; the cases below are written in terms of that.
'use strict';

const path = require('path');
const { burn } = require('./tasks.js');

const now = () => Number(process.hrtime.bigint()) / 1e9;
const peers = process.env.BENCH_NODE_MODULES;

/** Loads a package from where bench/setup put it. */
exports.load = (name) => {
  try {
    return require(path.join(peers || '', 'node_modules', name));
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
    return null;
  }
};

function roundsOf(seconds) {
  let best = Infinity;
  burn(1e6);
  for (let i = 0; i < 5; i++) {
    const start = now();
    burn(1e6);
    best = Math.min(best, now() - start);
  }
  return Math.max(1, Math.round(seconds * 1e6 / best));
}

function serialOf(n, rounds) {
  const start = now();
  for (let i = 0; i < n / 4; i++) burn(rounds);
  return (now() - start) * 4;
}

async function warm(open, o) {
  const pool = open(o.workers);
  const first = [];
  for (let i = 0; i < 2 * o.workers; i++) first.push(pool.run('inc', i));
  await Promise.all(first);
  return pool;
}

const line = () => new Promise((resolve) => process.stdin.once('data', resolve));

exports.cases = {
  async apply(open, o) {
    const pool = await warm(open, o);
    for (let i = 0; i < o.n / 10; i++) await pool.run('noop', 0);
    const start = now();
    for (let i = 0; i < o.n; i++) await pool.run('noop', 0);
    const took = now() - start;
    await pool.close();
    return { value: took / o.n * 1e6, unit: 'us' };
  },

  async async(open, o) {
    const pool = await warm(open, o);
    const rounds = o.us ? roundsOf(o.us * 1e-6) : 0;
    const results = [];
    const start = now();
    for (let i = 0; i < o.n; i++) {
      results.push(rounds ? pool.run('burn', rounds) : pool.run('inc', i));
    }
    await Promise.all(results);
    const took = now() - start;
    await pool.close();
    return { value: o.n / took, unit: '1/s', us: o.us };
  },

  async echo(open, o) {
    const pool = await warm(open, o);
    const text = 'x'.repeat(o.size);
    await pool.run('echo', text);
    const start = now();
    for (let i = 0; i < o.n; i++) await pool.run('echo', text);
    const took = now() - start;
    await pool.close();
    return { value: 2 * o.size * o.n / took / 2 ** 30, unit: 'GiB/s',
      size: o.size };
  },

  async records(open, o) {
    const pool = await warm(open, o);
    const list = [];
    for (let i = 0; i < o.n; i++) {
      list.push({ id: i, name: 'name' + i, score: i * 0.5 });
    }
    const start = now();
    const back = await pool.run('echo', list);
    const took = now() - start;
    if (back.length !== o.n) throw new Error('lost records');
    await pool.close();
    return { value: took * 1e3, unit: 'ms' };
  },

  async start(open, o) {
    const times = [];
    for (let life = 0; life < o.n; life++) {
      const start = now();
      const pool = open(o.workers);
      const tasks = [];
      for (let i = 0; i < o.workers; i++) tasks.push(pool.run('inc', i));
      await Promise.all(tasks);
      await pool.close();
      times.push((now() - start) * 1e3);
    }
    times.sort((a, b) => a - b);
    return { value: times[(o.n - 1) >> 1], unit: 'ms', worst: times[o.n - 1] };
  },

  async cpu(open, o) {
    const rounds = roundsOf(o.us * 1e-6);
    const pool = await warm(open, o);
    let serial = serialOf(o.n, rounds);
    const tasks = [];
    const start = now();
    for (let i = 0; i < o.n; i++) tasks.push(pool.run('burn', rounds));
    await Promise.all(tasks);
    const took = now() - start;
    serial = (serial + serialOf(o.n, rounds)) / 2;
    await pool.close();
    return { value: serial / took, unit: 'x', us: o.us };
  },

  async hold(open, o) {
    const say = (stage) => console.log(JSON.stringify({ stage }));
    say('base');
    await line();
    const pool = await warm(open, o);
    say('ready');
    await line();
    await pool.close();
    process.exit(0);
  },
};

exports.main = async (peer, missing, open, more) => {
  const o = { workers: 2, n: 1000 };
  for (const word of process.argv.slice(3)) {
    const [key, value] = word.split('=');
    o[key] = Number(value);
  }
  const name = process.argv[2];
  const found = { ...exports.cases, ...more }[name];
  let result = { skip: 'no such case here' };
  if (missing) result = { skip: missing };
  else if (found) result = await found(open, o);
  console.log(JSON.stringify({ peer, case: name, n: o.n, workers: o.workers,
    ...result }));
};
