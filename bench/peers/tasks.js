// The tasks of the two Node peers: workerpool registers them in its worker,
// piscina names them as functions of this file.
'use strict';

const tasks = {
  noop: () => {},
  inc: (x) => x + 1,
  echo: (x) => x,
  burn: (rounds) => {
    let x = 1;
    for (let i = 1; i <= rounds; i++) x = (x * 31 + i) & 0xffffff;
    return x;
  },
  spin: () => { for (;;) { /* until killed */ } },
};

module.exports = tasks;
if (process.env.BENCH_WORKERPOOL) require('workerpool').worker(tasks);
