// Node's piscina: worker threads.
'use strict';

const path = require('path');
const common = require('./node_common.js');
const piscina = common.load('piscina');

function open(workers) {
  const pool = new piscina.Piscina({
    filename: path.join(__dirname, 'tasks.js'),
    minThreads: workers, maxThreads: workers,
  });
  return { run: (name, x) => pool.run(x, { name }),
    close: () => pool.destroy() };
}

common.main('piscina', piscina ? null : 'piscina is not installed', open, {})
  .then(() => process.exit(0));
