/*
** buffer.h - bytes that grow where they are written: a message is encoded
** straight into its place in shared memory. No lua.h, no memory of its own.
*/
#ifndef PROCPOOL_BUFFER_H
#define PROCPOOL_BUFFER_H

#include <stddef.h>
#include <stdint.h>

typedef struct buffer {
    uint8_t *data;
    size_t used, room;
    /* Makes room for at least `need` bytes past `used`; it may move data,
    ** keeping the used bytes. 0, or a negative errno. */
    int (*grow)(struct buffer *b, size_t need);
    size_t most;        /* what it can grow to at the best; 0: not known */
} buffer_t;

#endif
