/* The model that is always there, in flash: factory_model.c, written by models/export_c/factory.py. */
#ifndef FACTORY_MODEL_H
#define FACTORY_MODEL_H

#include <stddef.h>

extern const unsigned char factory_model[];
extern const size_t factory_model_bytes;

#endif
