// Node's workerpool, with processes for workers.
'use strict';

const path = require('path');
const common = require('./node_common.js');
const workerpool = common.load('workerpool');

function open(workers) {
  const pool = workerpool.pool(path.join(__dirname, 'tasks.js'), {
    workerType: 'process', minWorkers: workers, maxWorkers: workers,
    forkOpts: {
      serialization: 'advanced',
      env: { ...process.env, BENCH_WORKERPOOL: '1',
        NODE_PATH: path.join(process.env.BENCH_NODE_MODULES || '',
          'node_modules') },
    },
  });
  return { pool, run: (name, x) => pool.exec(name, [x]),
    close: () => pool.terminate() };
}

async function kill(_, o) {
  const times = [];
  for (let i = 0; i < o.n; i++) {
    const { pool, run, close } = open(o.workers);
    await run('inc', 1);
    const task = run('spin', 0);
    const busy = pool.workers.find((handler) => handler.busy());
    const start = process.hrtime.bigint();
    process.kill(busy.worker.pid, 'SIGKILL');
    try { await task; } catch (_error) {
      times.push(Number(process.hrtime.bigint() - start) / 1e6);
    }
    await close(true);
  }
  times.sort((a, b) => a - b);
  return { value: times[times.length >> 1], unit: 'ms',
    worst: times[times.length - 1] };
}

common.main('workerpool', workerpool ? null : 'workerpool is not installed',
  open, { kill }).then(() => process.exit(0));
