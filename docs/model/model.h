/*
** model.h - what the models share.
**
** One step is one access to memory that another living process may access
** as well. What only its owner, and after its death the keeper, looks at is
** stored within the same step; MAY_DIE stands between such stores too, so a
** worker can be killed before every single one.
**
** A crash is a choice, never forced except where nothing else is possible.
** So that this hides no hang, every model is run with every number of
** crashes up to its bound: a hang after n crashes is an invalid end state of
** the run that allows n.
*/
#ifndef CRASHES
#define CRASHES 0
#endif

byte crashes;

#define MAY_DIE                                                            \
    if                                                                     \
    :: crashes < CRASHES -> crashes++; goto died                           \
    :: true                                                                \
    fi

#define CAS(variable, old, new, ok)                                        \
    if                                                                     \
    :: variable == (old) -> variable = (new); ok = 1                       \
    :: else -> ok = 0                                                      \
    fi
